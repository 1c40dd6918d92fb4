//! `virtkeep repair`: builds the index anew.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{Env, OpenOptions, Repository};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{seconds, shown};
use crate::progress::CheckBar;
use crate::signals;

/// Build the index anew from packs and point records
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The index is only a cache. Run this when a message says that it cannot be used,
or when it is gone: packs and point records are read, and nothing but the index
is changed. It may be interrupted and repeated. Afterwards `virtkeep check`
tells whether every point can be restored.

Exit code 4 says that something could not be read; the index then holds the
rest.")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct DamageLine<'a> {
    r#type: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct SummaryLine {
    r#type: &'static str,
    clean: bool,
    points: u64,
    packs: u64,
    records: u64,
    damage: usize,
    seconds: f64,
}

pub(super) fn run(_: &Args, context: &Context) -> Result<Exit> {
    let started = Instant::now();
    let cancel = signals::cancel_in_order("leaving the index as it was")?;
    let options = OpenOptions {
        unsafe_network_fs: context.unsafe_network_fs(),
        ..OpenOptions::default()
    };
    let report = {
        let bar = CheckBar::new(&context.reporter);
        let path = context.repository_path()?;
        Repository::rebuild_index(path, &options, Env::system(), &bar, &cancel)?
    };
    let took = started.elapsed().as_secs_f64();
    for message in &report.damage {
        context.output.json(&DamageLine {
            r#type: "damage",
            message,
        })?;
        context.output.text(&shown(message))?;
    }
    let clean = report.damage.is_empty();
    context.output.json(&SummaryLine {
        r#type: "summary",
        clean,
        points: report.points,
        packs: report.packs,
        records: report.records,
        damage: report.damage.len(),
        seconds: (took * 1000.0).round() / 1000.0,
    })?;
    context.output.text(&format!(
        "built the index anew: {} points, {} records in {} packs, in {}",
        report.points,
        report.records,
        report.packs,
        seconds(took)
    ))?;
    Ok(if clean { Exit::Done } else { Exit::Damage })
}
