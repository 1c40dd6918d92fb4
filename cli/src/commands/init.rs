//! `virtkeep init`: makes a repository.

use anyhow::Result;
use serde::Serialize;
use virtkeep_repo::{ByteLen, Codec, Env, InitOptions, Repository};

use crate::context::Context;
use crate::exit::Exit;
use crate::output::{shown, size};
use crate::sizes::parse_bytes;

/// Make a new, empty repository
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep -r /backup/vms init
  virtkeep -r /backup/vms init --codec zstd:3      smaller, but slower

The repository is not encrypted: put it on an encrypted file system (LUKS) if it
leaves the house.")]
pub(crate) struct Args {
    /// Size of the pieces that are compared: a power of two from 4KiB to 4MiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = parse_size)]
    chunk_size: ByteLen,

    /// How data is compressed: lz4, zstd, zstd:1 to zstd:22, or none
    #[arg(long, default_value = "lz4", value_parser = parse_codec)]
    codec: Codec,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    path: &'a str,
    id: String,
    chunk_size_bytes: u64,
    codec: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let path = context.repository_path()?;
    let options = InitOptions {
        chunk_size: args.chunk_size,
        codec: args.codec,
        unsafe_network_fs: context.unsafe_network_fs(),
        ..InitOptions::default()
    };
    let repo = Repository::init(path, &options, Env::system())?;
    let path = path.to_string_lossy();
    context.output.text(&format!(
        "Made the repository {} in {}: chunks of {}, compressed with {}.",
        &repo.id().to_string()[..8],
        shown(&path),
        size(repo.chunk_size().0),
        repo.codec()
    ))?;
    context.output.json(&Line {
        r#type: "repository",
        path: &path,
        id: repo.id().to_string(),
        chunk_size_bytes: repo.chunk_size().0,
        codec: repo.codec().to_string(),
    })?;
    Ok(Exit::Done)
}

fn parse_codec(text: &str) -> Result<Codec, String> {
    text.parse::<Codec>().map_err(|error| error.to_string())
}

fn parse_size(text: &str) -> Result<ByteLen, String> {
    let bytes = parse_bytes(text)?;
    if bytes.is_power_of_two() && (4 << 10..=4 << 20).contains(&bytes) {
        Ok(ByteLen(bytes))
    } else {
        Err("it must be a power of two from 4KiB to 4MiB".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_powers_of_two_within_limits() {
        assert_eq!(parse_size("64KiB"), Ok(ByteLen(65536)));
        assert_eq!(parse_size("65536"), Ok(ByteLen(65536)));
        assert_eq!(parse_size("1M"), Ok(ByteLen(1 << 20)));
        for text in [
            "",
            "0",
            "2KiB",
            "8MiB",
            "96KiB",
            "64KB",
            "-64",
            "99999999999999999999M",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
