//! `virtkeep pin` and `virtkeep unpin`: points that must not be forgotten.

use anyhow::{Result, bail};
use serde::Serialize;
use virtkeep_repo::PinKind;

use crate::boot::record::{Pinned, from_pin};
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

The point stays until it is forgotten. A damaged pin, of which nobody knows what
it keeps, is removed by the name of its file, which `virtkeep check` tells.")]
pub(crate) struct UnpinArgs {
    /// The point: DOMAIN@WHEN, or a point id; or a pin, by the name of its file
    #[arg(value_name = "POINT")]
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

/// Of a pin that is removed by its name, the points are not told: nobody may know them.
#[derive(Serialize)]
struct UnpinnedLine<'a> {
    r#type: &'static str,
    point: Option<String>,
    domain: Option<&'a str>,
    pins: usize,
}

fn parse_reason(text: &str) -> Result<String, String> {
    match text.chars().count() {
        _ if text.trim().is_empty() => Err("a reason cannot be empty".to_owned()),
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
    let found = context.find_kept(&repo, &spec, &points)?;
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
    if is_pin_name(&args.point) {
        return unpin_by_name(args, context);
    }
    let spec = context.parse_point(&args.point)?;
    let repo = context.open()?;
    let points = context.points_named(&repo, &spec)?;
    let found = context.find_point(&spec, &points)?;
    if found.disk.is_some() {
        return Err(usage("a whole point is unpinned: leave the disk out"));
    }
    let point = found.point;
    let found = repo.pins().scan()?;
    context.warn_of_pins(&found.damaged);
    let mut pins = found.sound;
    pins.retain(|(_, pin)| pin.points.contains(&point.id));
    // Its pin is all that a recovery is known by.
    let recovery = pins
        .iter()
        .find_map(|(name, pin)| from_pin(name.clone(), pin.clone()));
    let (remove, stay): (Vec<_>, Vec<_>) = pins.into_iter().partition(|(name, pin)| {
        let is_recovery = from_pin(name.clone(), pin.clone()).is_some();
        pin.kind == PinKind::User || args.all && !is_recovery
    });
    for (name, _) in &remove {
        repo.remove_pin(name)?;
    }
    let what = context.describe(point);
    if let Some(recovery) = recovery {
        bail!("{what} is still pinned: {}", needed_by(&recovery));
    }
    if let Some((_, pin)) = stay.first() {
        bail!(
            "{what} is still pinned ({}): if that is over, use `virtkeep unpin {} --all`",
            shown(&pin.reason),
            point.id
        );
    }
    context.output.json(&UnpinnedLine {
        r#type: "unpinned",
        point: Some(point.id.to_string()),
        domain: Some(&point.domain.name),
        pins: remove.len(),
    })?;
    context.output.text(&if remove.is_empty() {
        format!("{what} was not pinned.")
    } else {
        format!("Unpinned {what}.")
    })?;
    Ok(Exit::Done)
}

/// Why the pin of a recovery stays.
fn needed_by(Pinned { pin, recovery, .. }: &Pinned) -> String {
    format!(
        "the recovered domain {} needs it. `virtkeep boot --finish {pin}` or `virtkeep boot --abort {pin}` ends that",
        shown(&recovery.domain)
    )
}

/// Names of pins are 32 hexadecimal digits; no id of a point is.
fn is_pin_name(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn unpin_by_name(args: &UnpinArgs, context: &Context) -> Result<Exit> {
    let repo = context.open()?;
    let name = args.point.to_ascii_lowercase();
    let found = repo.pins().scan()?;
    let damaged = found.damaged.iter().any(|pin| pin.name == name);
    match found.sound.into_iter().find(|(known, _)| *known == name) {
        None if !damaged => bail!("there is no pin {name}: `virtkeep check` tells of damaged ones"),
        // One that another host began may have died with that.
        Some((_, pin))
            if let Some(recovery) = from_pin(name.clone(), pin.clone())
                && recovery.recovery.home.is_here() =>
        {
            bail!("the pin {name} stays: {}", needed_by(&recovery))
        }
        Some((_, pin)) if pin.kind == PinKind::InUse && !args.all => bail!(
            "the pin {name} is in use ({}): if that is over, use `virtkeep unpin {name} --all`",
            shown(&pin.reason)
        ),
        _ => repo.remove_pin(&name)?,
    }
    context.output.json(&UnpinnedLine {
        r#type: "unpinned",
        point: None,
        domain: None,
        pins: 1,
    })?;
    let what = if damaged { "damaged pin" } else { "pin" };
    let hint = "`virtkeep list` shows which points are pinned now";
    context
        .output
        .text(&format!("Removed the {what} {name}; {hint}."))?;
    Ok(Exit::Done)
}
