//! `virtkeep release`: takes our checkpoints off a domain.

use anyhow::Result;
use serde::Serialize;

use super::backup::watch::Watch;
use crate::context::Context;
use crate::exit::Exit;
use crate::output::shown;

/// Remove this repository's checkpoint from a domain
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each repository keeps one checkpoint on a domain, so that the next backup reads
only what changed. Release it before the domain is undefined or virtkeep is
given up. The points in the repository stay; the next backup reads all of every
disk, and stores only what is new.

Example:
  virtkeep release web1")]
pub(crate) struct Args {
    /// Name or uuid of the domain
    domain: String,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    domain: &'a str,
    uuid: String,
    checkpoints: &'a [String],
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let repo = context.open()?;
    let host = context.host()?;
    let domain = host.domain(&args.domain)?;
    let watch = Watch::new(domain.name(), &context.reporter);
    let removed = virtkeep_capture::release(&host, &domain, &repo, &watch)?;
    context.output.json(&Line {
        r#type: "released",
        domain: domain.name(),
        uuid: domain.uuid().to_string(),
        checkpoints: &removed,
    })?;
    let name = shown(domain.name());
    context.output.text(&match &removed[..] {
        [] => format!("{name} has no checkpoint of this repository."),
        [one] => format!("Removed the checkpoint {} from {name}.", shown(one)),
        several => format!("Removed {} checkpoints from {name}.", several.len()),
    })?;
    Ok(Exit::Done)
}
