//! `virtkeep boot`: runs a guest from a point at once, and moves its data in meanwhile.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;
use virtkeep_repo::{Point, Remark, Repository};

use crate::boot::claim::Claim;
use crate::boot::damage::{self, Lost};
use crate::boot::finish::{self, Finished};
use crate::boot::machine::{Machine, State};
use crate::boot::record::Pinned;
use crate::boot::start::{Start, shown_dir, usual_name};
use crate::boot::status::{self, Status};
use crate::boot::trial::Trial;
use crate::boot::work::Work;
use crate::boot::{abort, place};
use crate::context::Context;
use crate::define::As;
use crate::exit::{Exit, usage};
use crate::output::{Table, bytes_range, seconds, shown, size};
use crate::signals;
use crate::when::{local_time, rfc3339};

/// Run a guest from a point at once, and move its data in while it works
#[derive(clap::Args, Debug)]
#[command(
    after_help = "\
Examples:
  virtkeep boot web1@latest                 as web1-boot, its links down
  virtkeep boot web1@latest --as-original   the machine that is lost
  virtkeep boot --status
  virtkeep boot --finish web1
  virtkeep boot web1@latest --test          does it start?

The guest writes to images of its own in DIR and reads the rest from the
repository, until all data has been moved in; then nothing in the repository is
needed any more. Interrupted, also by a reboot, the recovery goes on with
--finish, or is undone with --abort. A recovery keeps its point from forget and
prune until its end. Neither touches the disks that the original has.",
    group = clap::ArgGroup::new("identity"),
    group = clap::ArgGroup::new("action")
)]
pub(crate) struct Args {
    /// The point: DOMAIN@WHEN or a point id; with --finish and --abort the domain of a recovery
    #[arg(value_name = "POINT|DOMAIN", required_unless_present = "action")]
    what: Option<String>,

    /// Run it with the name, uuid and MAC addresses it had
    #[arg(long, group = "identity")]
    as_original: bool,

    /// Run it as a clone of this name [default: the old one with `-boot` behind it]
    #[arg(long, group = "identity", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,

    /// Leave the network links of the clone up
    #[arg(long, conflicts_with = "as_original")]
    network: bool,

    /// The directory for its images [default: one of its name where libvirt has its images]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// Leave the data in the repository until --finish
    #[arg(long)]
    no_pull: bool,

    /// Show the recoveries that have not ended; start a server that has gone again
    #[arg(long, group = "action", conflicts_with_all = ["identity", "to", "no_pull", "network"])]
    status: bool,

    /// Bring a recovery to its end
    #[arg(long, group = "action", conflicts_with_all = ["identity", "to", "no_pull", "network"])]
    finish: bool,

    /// With --finish: put zeroes where stored bytes are damaged, and list the ranges. Said once, it holds until the
    /// recovery ends
    #[arg(long, requires = "finish")]
    salvage: bool,

    /// Undo a recovery; what its guest has written is lost
    #[arg(long, group = "action", conflicts_with_all = ["identity", "to", "no_pull", "network"])]
    abort: bool,

    /// With --finish and --abort: this host began the recovery, though its machine-id has changed since
    #[arg(long, requires = "action", conflicts_with = "status")]
    same_host: bool,

    /// Abort without asking
    #[arg(long, requires = "abort")]
    yes: bool,

    /// Start it throw-away and without network, wait for a sign of life, and note it with the point
    #[arg(long, requires = "what", conflicts_with_all = ["identity", "no_pull", "network", "action"])]
    test: bool,

    /// A sign of life: this text on the serial console [default: the guest agent answers, or, where there was
    /// none when the point was made, the guest computes and uses its disks for a time]
    #[arg(long, value_name = "TEXT", requires = "test",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    expect: Option<String>,

    /// How long to wait for a sign of life
    #[arg(long, value_name = "SECONDS", requires = "test", default_value_t = 120)]
    wait: u64,
}

/// A recovery as programs see it.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    domain: &'a str,
    uuid: &'a str,
    point: String,
    since: String,
    directory: &'a str,
    #[serde(flatten)]
    rest: Rest<'a>,
}

/// What else there is to say of it.
#[derive(Serialize)]
#[serde(untagged)]
enum Rest<'a> {
    Booted {
        seconds: f64,
        notes: &'a [String],
    },
    Status {
        state: Option<State>,
        served: bool,
        free_bytes: Option<u64>,
        troubles: &'a [String],
        disks: Vec<DiskLine<'a>>,
    },
    Recovered {
        seconds: f64,
        lost: &'a [Lost],
    },
    Aborted {
        seconds: f64,
    },
}

#[derive(Serialize)]
struct DiskLine<'a> {
    target: &'a str,
    image: &'a str,
    size_bytes: u64,
    moved: Option<f64>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let began = Instant::now();
    let what = args.what.as_deref();
    let repo = context.open()?;
    if args.status {
        return show_all(what, context, &repo);
    }
    if args.finish {
        let cancel = signals::cancel_in_order("leaving the recovery to itself")?;
        let (pinned, work) = take(&repo, what, args.same_host)?;
        return bring_to_end(context, &repo, &pinned, work, args.salvage, &cancel);
    }
    if args.abort {
        confirm(&Pinned::find(&repo, what)?, args.yes)?;
        let (pinned, work) = take(&repo, what, args.same_host)?;
        let name = shown(&pinned.recovery.domain);
        context
            .output
            .text(&match abort::abort(&repo, &pinned, work)? {
                true => format!("{name} and all that was made for it is gone"),
                false => format!("the recovery of {name} is gone, and what it had pinned is free"),
            })?;
        let seconds = rounded(began);
        return report(context, "aborted", &pinned, Rest::Aborted { seconds });
    }
    start(args, context, &repo, began)
}

/// The recovery that is meant, and the right to work on it.
fn take(repo: &Repository, what: Option<&str>, same_host: bool) -> Result<(Pinned, Work)> {
    let mut pinned = Pinned::find(repo, what)?;
    if same_host {
        pinned.say_same_host()?;
    }
    Machine::connect(&pinned.recovery)?;
    place::make_socket_directory(&pinned.recovery.socket)?;
    let work = Work::take(&pinned.recovery)?;
    // Whoever had it before may have ended it.
    match Pinned::of(repo, &pinned.pin)? {
        Some(_) => Ok((pinned, work)),
        None => {
            work.end()?;
            bail!(
                "the recovery of {} has just ended",
                shown(&pinned.recovery.domain)
            )
        }
    }
}

fn start(args: &Args, context: &Context, repo: &Repository, began: Instant) -> Result<Exit> {
    let text = args.what.as_deref().unwrap_or_default();
    let spec = context.parse_point(text)?;
    let points = context.points(repo)?;
    let found = context.find_kept(repo, &spec, &points)?;
    if found.disk.is_some() {
        return Err(usage(
            "a guest runs with all its disks: leave the disk out of the POINT",
        ));
    }
    let point = found.point;
    if args.test {
        return test(args, context, repo, point);
    }
    let wanted = if args.as_original {
        As::Original
    } else {
        As::Clone {
            name: args.name.clone().unwrap_or_else(|| usual_name(point)),
            network: args.network,
        }
    };
    let cancel = signals::cancel_in_order("removing what was made so far")?;
    let start = Start {
        context,
        repo,
        point,
        wanted,
        directory: args.to.clone(),
        pull: !args.no_pull,
    };
    let started = start.run(&cancel)?;
    signals::now_cleaning("leaving the recovery to itself");
    let took = rounded(began);
    for note in &started.notes {
        context.reporter.note(&format!("note: {note}"));
    }
    let pinned = &started.pinned;
    context.output.text(&format!(
        "{} runs from {} after {}",
        shown(&pinned.recovery.domain),
        context.describe(point),
        seconds(took)
    ))?;
    let rest = Rest::Booted {
        seconds: took,
        notes: &started.notes,
    };
    report(context, "booted", pinned, rest)?;
    if args.no_pull {
        context
            .output
            .text("Its data stays in the repository until `virtkeep boot --finish` moves it in.")?;
        return Ok(Exit::Done);
    }
    bring_to_end(context, repo, pinned, started.work, false, &cancel)
}

/// How a test went, as programs see it.
#[derive(Serialize)]
struct TestLine<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    time: String,
    passed: bool,
    seen: &'a str,
    seconds: f64,
}

fn test(args: &Args, context: &Context, repo: &Repository, point: &Point) -> Result<Exit> {
    let described = context.describe(point);
    context.reporter.note(&format!("testing {described}"));
    let cancel = signals::cancel_in_order("removing what was started")?;
    let verdict = Trial {
        context,
        repo,
        point,
        directory: args.to.as_deref(),
        expect: args.expect.as_deref(),
        limit: Duration::from_secs(args.wait),
    }
    .run(&cancel)?;
    let took = (verdict.took.as_secs_f64() * 1000.0).round() / 1000.0;
    let remark = Remark::BootTest {
        passed: verdict.passed,
        seen: verdict.seen.clone(),
        seconds: took,
    };
    repo.add_note(point.id, remark)?;
    let word = if verdict.passed {
        "alive"
    } else {
        "no sign of life"
    };
    context.output.text(&format!(
        "{described}: {word} after {}: {}",
        seconds(took),
        shown(&verdict.seen)
    ))?;
    context.output.json(&TestLine {
        r#type: "boot-test",
        point: point.id.to_string(),
        domain: &point.domain.name,
        time: rfc3339(point.time),
        passed: verdict.passed,
        seen: &verdict.seen,
        seconds: took,
    })?;
    Ok(if verdict.passed {
        Exit::Done
    } else {
        Exit::Partly
    })
}

fn bring_to_end(
    context: &Context,
    repo: &Repository,
    pinned: &Pinned,
    work: Work,
    salvage: bool,
    cancel: &virtkeep_repo::Cancel,
) -> Result<Exit> {
    let began = Instant::now();
    let recovery = &pinned.recovery;
    if !salvage && damage::is_salvaging(recovery) {
        context
            .reporter
            .note(&format!("note: {}", damage::STILL_GIVEN_UP));
    }
    let finished = finish::finish(context, repo, pinned, work, salvage, cancel)?;
    if let Finished::Interrupted { by_itself } = finished {
        let name = shown(&recovery.domain);
        context.reporter.note(&if by_itself {
            format!(
                "the recovery of {name} goes on by itself: `virtkeep boot --status` shows how far it is, and \
                 `virtkeep boot --finish` watches it to its end"
            )
        } else {
            format!(
                "the recovery of {name} waits, since its guest is off: `virtkeep boot --finish` goes on with it"
            )
        });
        return Ok(signals::caught().map_or(Exit::Failed, Exit::Signal));
    }
    if finished == Finished::WithoutDomain {
        context.reporter.note(&format!(
            "libvirt has no domain with these images: `virsh define {}` makes it",
            recovery.definition().display()
        ));
    }
    let lost = damage::given_up(recovery)?;
    for one in &lost {
        context.reporter.note(&format!(
            "{}: {} are lost, and zero unless the guest has written there: {}",
            one.target,
            bytes_range(one.start, one.end),
            one.message
        ));
    }
    let (seconds_taken, dir) = (rounded(began), shown_dir(&recovery.directory));
    let (name, took) = (shown(&recovery.domain), seconds(seconds_taken));
    context.output.text(&if lost.is_empty() {
        format!(
            "all data of {name} is in {dir} after {took}: it needs nothing from the repository any more"
        )
    } else {
        format!(
            "what could be read of {name} is in {dir} after {took}; what could not is listed in {}",
            recovery.lost_ranges().display()
        )
    })?;
    let (seconds, lost) = (seconds_taken, &lost[..]);
    let rest = Rest::Recovered { seconds, lost };
    report(context, "recovered", pinned, rest)?;
    Ok(match lost.is_empty() {
        true => Exit::Done,
        false => Exit::Partly,
    })
}

fn show_all(name: Option<&str>, context: &Context, repo: &Repository) -> Result<Exit> {
    let all = match name {
        Some(_) => vec![Pinned::find(repo, name)?],
        None => Pinned::all(repo)?,
    };
    if all.is_empty() {
        context.output.text("No recovery is under way.")?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[
        "DOMAIN", "SINCE", "POINT", "GUEST", "SERVER", ">MOVED", ">FREE", "IN",
    ]);
    let mut troubles = Vec::new();
    for pinned in &all {
        let Some(status) = status::look(context, repo, pinned)? else {
            continue;
        };
        let recovery = &pinned.recovery;
        table.row([
            shown(&recovery.domain),
            local_time(pinned.since, &context.zone),
            pinned.point.to_string(),
            status.state.map_or("unknown", State::describe).to_owned(),
            server_in_words(&status).to_owned(),
            moved(pinned, &status),
            status.free.map_or("?".to_owned(), size),
            shown_dir(&recovery.directory),
        ]);
        let disks = recovery.disks.iter().zip(&status.disks);
        let disks = disks.map(|(disk, moved)| DiskLine {
            target: &disk.target,
            image: disk.overlay.to_str().unwrap_or_default(),
            size_bytes: disk.size_bytes,
            moved: moved.map(|share| (share * 1000.0).round() / 1000.0),
        });
        let rest = Rest::Status {
            state: status.state,
            served: status.served,
            free_bytes: status.free,
            troubles: &status.troubles,
            disks: disks.collect(),
        };
        report(context, "recovery", pinned, rest)?;
        let name = shown(&recovery.domain);
        let told = status.troubles.iter();
        troubles.extend(told.map(|trouble| format!("{name}: {}", shown(trouble))));
    }
    context.output.text(&table.render())?;
    for trouble in troubles {
        context.output.text(&trouble)?;
    }
    Ok(Exit::Done)
}

fn server_in_words(status: &Status) -> &'static str {
    match (status.served, status.started_again) {
        (true, true) => "started again",
        (true, false) => "serving",
        (false, _) => "gone",
    }
}

/// The share of all disks' bytes that has been moved.
fn moved(pinned: &Pinned, status: &Status) -> String {
    let disks = pinned.recovery.disks.iter().zip(&status.disks);
    let (mut done, mut all) = (0.0, 0.0);
    for (disk, share) in disks {
        let Some(share) = share else {
            return "?".to_owned();
        };
        done += share * disk.size_bytes as f64;
        all += disk.size_bytes as f64;
    }
    format!("{:.0}%", (100.0 * done / f64::max(all, 1.0)).floor())
}

/// Asks whether what the guest has written may go. Without a terminal only `--yes` will do.
fn confirm(pinned: &Pinned, yes: bool) -> Result<()> {
    let name = shown(&pinned.recovery.domain);
    let dir = shown_dir(&pinned.recovery.directory);
    let what = match Claim::of(pinned).holds()? {
        true => format!("{name} will be ended and removed with its images in {dir}"),
        false => format!(
            "the pin of {name} will be removed, its definition too if all its images are gone, and nothing in {dir}"
        ),
    };
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(usage(format!(
            "{what}. There is no terminal to ask on: pass --yes to do it"
        )));
    }
    let mut err = std::io::stderr().lock();
    write!(
        err,
        "{what}. All that its guest has written since will be lost. Type yes: "
    )?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("not confirmed: the recovery goes on");
    }
    Ok(())
}

fn report(context: &Context, kind: &'static str, pinned: &Pinned, rest: Rest<'_>) -> Result<Exit> {
    let recovery = &pinned.recovery;
    context.output.json(&Line {
        r#type: kind,
        domain: &recovery.domain,
        uuid: &recovery.uuid,
        point: pinned.point.to_string(),
        since: rfc3339(pinned.since),
        directory: recovery.directory.to_str().unwrap_or_default(),
        rest,
    })?;
    Ok(Exit::Done)
}

fn rounded(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}
