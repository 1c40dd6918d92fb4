//! Forgetting what a policy does not keep, with a table that says why each point stays or goes.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{DomainUuid, Env, Error, Point, PointId, Repository};

use crate::context::Context;
use crate::exit::{Exit, WouldEmpty};
use crate::output::{Table, counted, shown};
use crate::point_spec::{points_of, times};
use crate::retention::{Policy, Verdict};
use crate::when::rfc3339;

/// What becomes of one point.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    uuid: String,
    time: String,
    keep: bool,
    reasons: Vec<ReasonLine>,
}

#[derive(Serialize)]
struct ReasonLine {
    rule: &'static str,
    detail: Option<String>,
}

/// A point that no policy can judge.
#[derive(Serialize)]
struct DamagedLine {
    r#type: &'static str,
    point: String,
    message: String,
}

#[derive(Serialize)]
struct SummaryLine {
    r#type: &'static str,
    dry_run: bool,
    kept: usize,
    forgotten: usize,
    damaged: usize,
}

pub(super) fn forget(
    policy: &Policy,
    domains: &[String],
    dry_run: bool,
    context: &Context,
) -> Result<Exit> {
    let repo = if dry_run {
        context.open_to_read()?
    } else {
        let repo = context.open()?;
        repo.check_may_remove()?;
        repo
    };
    let points = repo.points()?;
    let damaged = repo.damaged_points()?;
    let wanted = of_domains(domains, &points)?;
    let now = Env::system().clock.now();
    let verdicts = policy.apply(wanted, &pins(&repo)?, now, &context.zone);

    tell(&verdicts, &damaged, context)?;
    refuse_to_empty(&verdicts)?;
    let all = || verdicts.iter().flatten();
    let going = all().filter(|verdict| !verdict.is_kept());
    let going: Vec<PointId> = going.map(|verdict| verdict.point.id).collect();
    let kept = all().count() - going.len();
    if !dry_run {
        repo.forget(&going)?;
    }
    context.output.json(&SummaryLine {
        r#type: "summary",
        dry_run,
        kept,
        forgotten: going.len(),
        damaged: damaged.len(),
    })?;
    let would = if dry_run { "would be " } else { "" };
    let (gone, stay) = (counted(going.len(), "point"), counted(kept, "point"));
    context
        .output
        .text(&format!("{gone} {would}forgotten, {stay} kept"))?;
    Ok(Exit::Done)
}

/// The points of these domains; all when none is named.
fn of_domains<'a>(domains: &[String], points: &'a [Point]) -> Result<Vec<&'a Point>> {
    if domains.is_empty() {
        return Ok(points.iter().collect());
    }
    let mut wanted: HashSet<DomainUuid> = HashSet::new();
    for domain in domains {
        wanted.extend(points_of(domain, points)?.iter().map(|p| p.domain.uuid));
    }
    let of_them = points.iter().filter(|p| wanted.contains(&p.domain.uuid));
    Ok(of_them.collect())
}

fn pins(repo: &Repository) -> Result<HashMap<PointId, Vec<String>>> {
    let mut reasons: HashMap<PointId, Vec<String>> = HashMap::new();
    for (_, pin) in repo.pins().list()? {
        for point in pin.points {
            reasons.entry(point).or_default().push(pin.reason.clone());
        }
    }
    Ok(reasons)
}

/// A domain that is to lose its last point has to be told so by name.
fn refuse_to_empty(verdicts: &[Vec<Verdict<'_>>]) -> Result<(), WouldEmpty> {
    let emptied = verdicts
        .iter()
        .find(|domain| domain.iter().all(|verdict| !verdict.is_kept()));
    match emptied.and_then(|domain| domain.last()) {
        Some(newest) => Err(WouldEmpty {
            domain: newest.point.domain.name.clone(),
        }),
        None => Ok(()),
    }
}

fn tell(
    verdicts: &[Vec<Verdict<'_>>],
    damaged: &[(PointId, Error)],
    context: &Context,
) -> Result<()> {
    for (id, error) in damaged {
        context.output.json(&DamagedLine {
            r#type: "damaged-point",
            point: id.to_string(),
            message: error.to_string(),
        })?;
    }
    let mut table = Table::new(&["DOMAIN", "TIME", "ID", "RESULT", "WHY", "TAGS"]);
    for domain in verdicts {
        let points: Vec<&Point> = domain.iter().map(|verdict| verdict.point).collect();
        for (verdict, time) in domain.iter().zip(times(&points, &context.zone)) {
            context.output.json(&line(verdict))?;
            table.row(row(verdict, time));
        }
    }
    for (id, _) in damaged {
        let why = "its record is damaged: run `virtkeep check`";
        let cells = ["?", "?", &id.to_string(), "keep", why, ""];
        table.row(cells.map(str::to_owned));
    }
    if !verdicts.is_empty() || !damaged.is_empty() {
        context.output.text(&table.render())?;
    }
    Ok(())
}

fn row(verdict: &Verdict<'_>, time: String) -> [String; 6] {
    let Verdict { point, reasons } = verdict;
    let why: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    let tags: Vec<String> = point.tags.iter().map(|tag| shown(tag)).collect();
    let (verb, why) = if verdict.is_kept() {
        ("keep", why.join(", "))
    } else {
        ("forget", "no rule keeps it".to_owned())
    };
    [
        shown(&point.domain.name),
        time,
        point.id.to_string(),
        verb.to_owned(),
        why,
        tags.join(","),
    ]
}

fn line<'a>(verdict: &Verdict<'a>) -> Line<'a> {
    let point = verdict.point;
    Line {
        r#type: "retention",
        point: point.id.to_string(),
        domain: &point.domain.name,
        uuid: point.domain.uuid.to_string(),
        time: rfc3339(point.time),
        keep: verdict.is_kept(),
        reasons: verdict
            .reasons
            .iter()
            .map(|reason| ReasonLine {
                rule: reason.rule(),
                detail: reason.detail(),
            })
            .collect(),
    }
}
