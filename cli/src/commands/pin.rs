//! `virtkeep pin` and `virtkeep unpin`: points that must not be forgotten.

use anyhow::{Result, bail};
use serde::Serialize;
use virtkeep_repo::PinKind;

use crate::context::Context;
use crate::exit::{Exit, usage};
use crate::output::shown;

/// The longest reason, in characters.
const REASON_CHARS_MAX: usize = 500;

/// Keep a point from being forgotten
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep pin web1@latest --reason 'before the upgrade'
  virtkeep unpin web1@2026-11-22T22:11

A pinned point is kept by every policy of `forget`, and cannot be named there.")]
pub(crate) struct PinArgs {
    /// The point: DOMAIN@WHEN, or a point id
    point: String,

    /// Why, for whoever wants to forget it
    #[arg(long, value_name = "TEXT", default_value = "by hand", value_parser = parse_reason)]
    reason: String,
}

/// Let a pinned point be forgotten again
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  virtkeep unpin web1@2026-11-22T22:11

The point stays until it is forgotten.")]
pub(crate) struct UnpinArgs {
    /// The point: DOMAIN@WHEN, or a point id
    point: String,

    /// Also remove the pins of what runs from the point
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct PinnedLine<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct UnpinnedLine<'a> {
    r#type: &'static str,
    point: String,
    domain: &'a str,
    pins: usize,
}

fn parse_reason(text: &str) -> Result<String, String> {
    match text.chars().count() {
        0 => Err("a reason cannot be empty".to_owned()),
        count if count <= REASON_CHARS_MAX => Ok(text.to_owned()),
        _ => Err(format!(
            "a reason has at most {REASON_CHARS_MAX} characters"
        )),
    }
}

pub(super) fn pin(args: &PinArgs, context: &Context) -> Result<Exit> {
    let spec = context.parse_point(&args.point)?;
    let repo = context.open()?;
    let points = context.points(&repo)?;
    let found = context.find_point(&spec, &points)?;
    if found.disk.is_some() {
        return Err(usage("a whole point is pinned: leave the disk out"));
    }
    let point = found.point;
    repo.pin(&[point.id], PinKind::User, &args.reason)?;
    context.output.json(&PinnedLine {
        r#type: "pinned",
        point: point.id.to_string(),
        domain: &point.domain.name,
        reason: &args.reason,
    })?;
    let (what, why) = (context.describe(point), shown(&args.reason));
    context.output.text(&format!("Pinned {what}: {why}."))?;
    Ok(Exit::Done)
}

pub(super) fn unpin(args: &UnpinArgs, context: &Context) -> Result<Exit> {
    let spec = context.parse_point(&args.point)?;
    let repo = context.open()?;
    let points = context.points_named(&repo, &spec)?;
    let point = context.find_point(&spec, &points)?.point;
    let mut pins = repo.pins().list()?;
    pins.retain(|(_, pin)| pin.points.contains(&point.id));
    let (remove, stay): (Vec<_>, Vec<_>) = pins
        .into_iter()
        .partition(|(_, pin)| args.all || pin.kind == PinKind::User);
    for (name, _) in &remove {
        repo.remove_pin(name)?;
    }
    let what = context.describe(point);
    if let Some((_, pin)) = stay.first() {
        bail!(
            "{what} is still pinned ({}): if that is over, use `virtkeep unpin {} --all`",
            shown(&pin.reason),
            point.id
        );
    }
    context.output.json(&UnpinnedLine {
        r#type: "unpinned",
        point: point.id.to_string(),
        domain: &point.domain.name,
        pins: remove.len(),
    })?;
    context.output.text(&if remove.is_empty() {
        format!("{what} was not pinned.")
    } else {
        format!("Unpinned {what}.")
    })?;
    Ok(Exit::Done)
}
