//! `virtkeep stats`: what the repository holds and what it takes up.

use anyhow::Result;
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{counted, size};

/// Show what the repository holds, and what that takes up
#[derive(clap::Args, Debug)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Line {
    r#type: &'static str,
    points: u64,
    disk_bytes: u64,
    chunks: u64,
    data_bytes: u64,
    packs: u64,
    pack_bytes: u64,
    index_bytes: u64,
}

pub(super) fn run(_: &Args, context: &Context) -> Result<Exit> {
    let repo = context.open_to_read()?;
    let stats = repo.stats()?;
    let data_bytes = stats.chunks.saturating_mul(repo.chunk_size().0);
    context.output.json(&Line {
        r#type: "stats",
        points: stats.points,
        disk_bytes: stats.disk_bytes,
        chunks: stats.chunks,
        data_bytes,
        packs: stats.packs,
        pack_bytes: stats.pack_bytes,
        index_bytes: stats.index_bytes,
    })?;
    let lines = [
        format!("points   {}", stats.points),
        format!(
            "disks    {} in all points together, empty space included",
            size(stats.disk_bytes)
        ),
        format!(
            "chunks   {} different, {} uncompressed",
            stats.chunks,
            size(data_bytes)
        ),
        format!(
            "packs    {} in {}",
            size(stats.pack_bytes),
            counted(stats.packs, "file")
        ),
        format!("index    {}", size(stats.index_bytes)),
    ];
    context.output.text(&lines.join("\n"))?;
    Ok(Exit::Done)
}
