//! Forgetting points that are named one by one, and bringing them back.

use std::collections::HashSet;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{Error, Forgotten, Point, PointId, Repository};

use crate::context::Context;
use crate::exit::{Exit, usage};
use crate::output::shown;
use crate::point_spec::{PointError, PointSpec};
use crate::signals;
use crate::when::rfc3339;

/// A point that was forgotten, or brought back. Of one whose record is damaged, only the id is known.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    point: String,
    domain: Option<&'a str>,
    uuid: Option<String>,
    time: Option<String>,
    dry_run: bool,
}

impl<'a> Line<'a> {
    fn new(r#type: &'static str, id: PointId, point: Option<&'a Point>, dry_run: bool) -> Self {
        Self {
            r#type,
            point: id.to_string(),
            domain: point.map(|point| point.domain.name.as_str()),
            uuid: point.map(|point| point.domain.uuid.to_string()),
            time: point.map(|point| rfc3339(point.time)),
            dry_run,
        }
    }
}

pub(super) fn forget(names: &[String], dry_run: bool, context: &Context) -> Result<Exit> {
    let specs = parse(names, context)?;
    let repo = if dry_run {
        context.open_to_read()?
    } else {
        context.open()?
    };
    let points = context.points(&repo)?;
    let mut chosen: Vec<(PointId, Option<&Point>)> = Vec::new();
    for spec in &specs {
        let one = match find(spec, &points, context) {
            Ok(point) => (point.id, Some(point)),
            Err(error) if is_not_found(&error) => match unlisted(spec, &repo, context)? {
                Unlisted::Damaged(id) => (id, None),
                Unlisted::Forgotten => continue,
                Unlisted::No => return Err(error),
            },
            Err(error) => return Err(error),
        };
        if !chosen.iter().any(|(id, _)| *id == one.0) {
            chosen.push(one);
        }
    }
    if !dry_run {
        let ids: Vec<PointId> = chosen.iter().map(|(id, _)| *id).collect();
        repo.forget(&ids)?;
    }
    let verb = if dry_run { "Would forget" } else { "Forgot" };
    for (id, point) in &chosen {
        let line = Line::new("forgotten", *id, *point, dry_run);
        context.output.json(&line)?;
        let what = point.map_or_else(|| id.to_string(), |point| context.describe(point));
        context.output.text(&format!("{verb} {what}."))?;
    }
    note_last_points(&chosen, &points, context);
    Ok(Exit::Done)
}

pub(super) fn undo(names: &[String], context: &Context) -> Result<Exit> {
    let specs = parse(names, context)?;
    let repo = context.open()?;
    let Forgotten {
        points: forgotten,
        damaged,
    } = repo.forgotten()?;
    let points = repo.points()?;
    let cancel = signals::cancel_in_order("ending; nothing was changed")?;
    for spec in &specs {
        let point = match find(spec, &forgotten, context) {
            Ok(point) => point,
            Err(error) if !is_not_found(&error) => return Err(error),
            // By its id only: a time means another point now.
            Err(error) => match spec.id_prefix().map(|_| find(spec, &points, context)) {
                Some(Ok(point)) => {
                    let what = context.describe(point);
                    context.reporter.note(&format!("{what} is not forgotten"));
                    continue;
                }
                _ => return Err(beyond_undoing(spec, &damaged).unwrap_or(error)),
            },
        };
        let point = repo
            .undo_forget(point.id, &cancel)
            .map_err(|error| match error.is_damage() && !matches!(error, Error::Io { .. }) {
                true => anyhow::Error::new(error).context(format!(
                    "cannot bring {} back, since it is damaged; `virtkeep restore {} --salvage` gives back what is left of it",
                    context.describe(point),
                    point.id
                )),
                false => error.into(),
            })?;
        let line = Line::new("brought-back", point.id, Some(&point), false);
        context.output.json(&line)?;
        let what = context.describe(&point);
        context.output.text(&format!("Brought {what} back."))?;
    }
    Ok(Exit::Done)
}

fn parse(names: &[String], context: &Context) -> Result<Vec<PointSpec>> {
    names.iter().map(|name| context.parse_point(name)).collect()
}

fn is_not_found(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(PointError::NotFound(_)))
}

/// Says so when the id is one of a forgotten point whose record is damaged.
fn beyond_undoing(spec: &PointSpec, damaged: &[(PointId, Error)]) -> Option<anyhow::Error> {
    let prefix = spec.id_prefix()?;
    let (id, error) = damaged
        .iter()
        .find(|(id, _)| id.to_string().starts_with(prefix))?;
    let why = format!(
        "the forgotten point {id} cannot be brought back, since its record cannot be read: {}",
        error.reason()
    );
    Some(PointError::NotFound(why).into())
}

fn find<'a>(spec: &'a PointSpec, points: &'a [Point], context: &Context) -> Result<&'a Point> {
    let found = context.find_point(spec, points)?;
    match found.disk {
        Some(_) => Err(usage(
            "a point is forgotten with all its disks: leave the disk out",
        )),
        None => Ok(found.point),
    }
}

/// What an id may name besides the points there are.
enum Unlisted {
    Forgotten,
    Damaged(PointId),
    No,
}

fn unlisted(spec: &PointSpec, repo: &Repository, context: &Context) -> Result<Unlisted> {
    let Some(prefix) = spec.id_prefix() else {
        return Ok(Unlisted::No);
    };
    let damaged = repo.damaged_points()?;
    let damaged: Vec<PointId> = damaged.into_iter().map(|(id, _)| id).collect();
    let matching = |id: &PointId| id.to_string().starts_with(prefix);
    let forgotten = repo.forgotten()?;
    if let Some((id, _)) = forgotten.damaged.iter().find(|(id, _)| matching(id)) {
        context.reporter.note(&format!(
            "{id} is forgotten already, and its record is damaged: `virtkeep prune` removes it"
        ));
        return Ok(Unlisted::Forgotten);
    }
    let forgotten = forgotten.points;
    let fits: Vec<&PointId> = damaged.iter().filter(|id| matching(id)).collect();
    match (&fits[..], forgotten.iter().find(|p| matching(&p.id))) {
        ([id], _) => Ok(Unlisted::Damaged(**id)),
        ([], Some(point)) => {
            let what = context.describe(point);
            context.reporter.note(&format!("{what} is forgotten already"));
            Ok(Unlisted::Forgotten)
        }
        ([], None) => Ok(Unlisted::No),
        _ => Err(PointError::Ambiguous(format!(
            "several points whose records are damaged begin with {prefix}: type more of the one you mean"
        ))
        .into()),
    }
}

/// Says which domains have no point left, as far as is known.
fn note_last_points(chosen: &[(PointId, Option<&Point>)], points: &[Point], context: &Context) {
    let gone: HashSet<PointId> = chosen.iter().map(|(id, _)| *id).collect();
    let mut told = HashSet::new();
    for (_, point) in chosen {
        let Some(domain) = point.map(|point| &point.domain) else {
            continue;
        };
        let left = |p: &Point| p.domain.uuid == domain.uuid && !gone.contains(&p.id);
        if !points.iter().any(left) && told.insert(domain.uuid) {
            let name = shown(&domain.name);
            context
                .reporter
                .note(&format!("note: {name} has no other point"));
        }
    }
}
