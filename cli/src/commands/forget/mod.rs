//! `virtkeep forget`: points that are named, or those that a policy does not keep; and back again.

mod by_policy;
mod named;

use anyhow::Result;
use jiff::Span;

use super::prune;
use crate::context::Context;
use crate::exit::{Exit, usage};
use crate::retention::{Every, Policy, parse_count, parse_tag, parse_within};

/// Neither points nor rules were given.
const NOTHING_SAID: &str =
    "say which points go: name them, or what to keep, such as --keep-daily 7 --keep-weekly 4";

/// Rules choose points, and so do names.
const NAMED: [&str; 2] = ["points", "undo"];

/// Forget points: those named, or all that a policy does not keep
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  virtkeep forget --domain web1 --keep-within 14d
  virtkeep forget web1@2026-11-22T22:11 pk0ptf2c15bgc72bj
  virtkeep list --forgotten
  virtkeep forget --undo pk0ptf2c15bgc72bj

A point stays when any rule keeps it. Each domain is looked at by itself. Of
each hour, day, week, month or year the newest point is kept, for as many as are
asked for, counted from the newest; those without points do not count.

A forgotten point is not listed any more, and can still be shown and restored by
its id, and brought back with --undo, until prune has taken its bytes.")]
pub(crate) struct Args {
    /// The points: DOMAIN@WHEN, or point ids
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Bring forgotten points back
    #[arg(long, requires = "points")]
    undo: bool,

    #[command(flatten)]
    keep: Keep,

    /// Apply the policy to this domain only (name or uuid); may be given several times
    #[arg(long = "domain", value_name = "DOMAIN", conflicts_with_all = NAMED)]
    domains: Vec<String>,

    /// Only show what would be forgotten, and why
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,

    /// Prune afterwards: what was forgotten cannot be brought back then
    #[arg(long, conflicts_with_all = ["undo", "dry_run"])]
    prune: bool,
}

/// The rules of a policy.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "What to keep")]
struct Keep {
    /// The newest N points
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_last: Option<u64>,

    /// The newest point of each of N hours
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_hourly: Option<u64>,

    /// The newest point of each of N days
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_daily: Option<u64>,

    /// The newest point of each of N weeks (from Monday to Sunday)
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_weekly: Option<u64>,

    /// The newest point of each of N months
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_monthly: Option<u64>,

    /// The newest point of each of N years
    #[arg(long, value_name = "N", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_count)]
    keep_yearly: Option<u64>,

    /// Points not older than this, seen from the newest: 36h, 14d, 8w, 6mo, 1y
    #[arg(long, value_name = "SPAN", conflicts_with_all = NAMED, allow_hyphen_values = true, value_parser = parse_within)]
    keep_within: Option<Span>,

    /// Points with this label; may be given several times
    #[arg(long, value_name = "TAG", conflicts_with_all = NAMED, value_parser = parse_tag)]
    keep_tag: Vec<String>,
}

impl Keep {
    fn policy(&self) -> Policy {
        let counts = [
            (Every::Point, self.keep_last),
            (Every::Hour, self.keep_hourly),
            (Every::Day, self.keep_daily),
            (Every::Week, self.keep_weekly),
            (Every::Month, self.keep_monthly),
            (Every::Year, self.keep_yearly),
        ];
        Policy {
            counts: counts
                .into_iter()
                .filter_map(|(every, count)| Some((every, count?)))
                .collect(),
            within: self.keep_within,
            tags: self.keep_tag.clone(),
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    if args.undo {
        return named::undo(&args.points, context);
    }
    let done = choose_and_forget(args, context)?;
    if args.prune {
        return prune::run(&prune::Args::usual(), context);
    }
    Ok(done)
}

fn choose_and_forget(args: &Args, context: &Context) -> Result<Exit> {
    if !args.points.is_empty() {
        return named::forget(&args.points, args.dry_run, context);
    }
    let policy = args.keep.policy();
    if policy.is_empty() {
        return Err(usage(if policy.counts.is_empty() {
            NOTHING_SAID
        } else {
            "this policy keeps nothing: ask for more than 0 of something"
        }));
    }
    by_policy::forget(&policy, &args.domains, args.dry_run, context)
}
