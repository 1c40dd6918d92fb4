//! `virtkeep stats`: what the repository holds and what it saves.

use anyhow::Result;
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::size;

/// Show what the repository holds, and what deduplication saves
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Line {
    r#type: &'static str,
    points: u64,
    disk_bytes: u64,
    chunks: u64,
    packs: u64,
    pack_bytes: u64,
    index_bytes: u64,
}

pub(super) fn run(_: &Args, context: &Context) -> Result<Exit> {
    let stats = context.open_to_read()?.stats()?;
    context.output.json(&Line {
        r#type: "stats",
        points: stats.points,
        disk_bytes: stats.disk_bytes,
        chunks: stats.chunks,
        packs: stats.packs,
        pack_bytes: stats.pack_bytes,
        index_bytes: stats.index_bytes,
    })?;
    let mut lines = vec![
        format!("points   {}", stats.points),
        format!("disks    {} in all points together", size(stats.disk_bytes)),
        format!("chunks   {} different", stats.chunks),
        format!(
            "packs    {} in {} files",
            size(stats.pack_bytes),
            stats.packs
        ),
        format!("index    {}", size(stats.index_bytes)),
    ];
    if stats.pack_bytes > 0 && stats.disk_bytes > stats.pack_bytes {
        let ratio = stats.disk_bytes as f64 / stats.pack_bytes as f64;
        let digits = usize::from(ratio < 10.0);
        lines.push(format!(
            "saving   {ratio:.digits$} times smaller than all those disks"
        ));
    }
    context.output.text(&lines.join("\n"))?;
    Ok(Exit::Done)
}
