//! `virtkeep serve`: disks of points as NBD exports.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use nbd_server::{Event, Listener, Server};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::shown;
use crate::serve::address::{Address, Place, quoted};
use crate::serve::catalog::Catalog;
use crate::signals::Signals;

/// How long requests that have arrived may take once the server was asked to end.
const GRACE: Duration = Duration::from_secs(30);

/// Serve disks of points over NBD, read-only, until stopped
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  virtkeep serve                            all disks of all points
  virtkeep serve web1/vda@latest            one disk
  virtkeep serve --listen localhost:10809

An export is named DOMAIN/DISK@WHEN, as in web1/vda@latest, and any way to write
a point will do. Names are looked up when a client connects: new points are
there at once, and what is not in use can be forgotten meanwhile.

Ctrl-C or SIGTERM: requests that have arrived are answered, then the server
ends with exit code 0. A second one ends it at once.")]
pub(crate) struct Args {
    /// Only these points, or single disks of them [default: all]
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Where to listen: unix:PATH, or HOST:PORT on this machine; may be given several times
    /// [default: a unix socket in /run/virtkeep, or in $XDG_RUNTIME_DIR/virtkeep]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
}

/// A place where clients can connect, as programs see it. All of them are printed once the server
/// accepts clients.
#[derive(Serialize)]
struct Line {
    r#type: &'static str,
    address: String,
    uri: String,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    let specs = args
        .points
        .iter()
        .map(|point| context.parse_point(point))
        .collect::<Result<Vec<_>>>()?;
    let repo = context.open_to_read()?;
    let points = context.points(&repo)?;
    for spec in &specs {
        context.find_point(spec, &points)?;
    }
    drop(points);
    let usual = match args.listen[..] {
        [] => vec![Address::usual(&repo.id().to_string()[..8])?],
        _ => Vec::new(),
    };
    let catalog = Catalog::new(repo, specs, context.zone.clone(), context.reporter.clone());
    // Before anybody can connect, so that no signal finds the server without a handler.
    let signals = Signals::asking_to_end()?;
    let mut listeners: Vec<Listener> = Vec::new();
    let mut places = Vec::new();
    for address in usual.iter().chain(&args.listen) {
        for (listener, place) in address.listen()? {
            listeners.push(listener);
            places.push(place);
        }
    }
    let reporter = context.reporter.clone();
    let server = Server::new(Arc::new(catalog.clone()))
        .with_observer(move |event| {
            if let Some(text) = told(&event) {
                reporter.note(&text);
            }
        })
        .start(listeners)?;
    for place in &places {
        context.output.json(&Line {
            r#type: "listening",
            address: place.address(),
            uri: place.uri(""),
        })?;
    }
    let entries = catalog.entries()?;
    let first = entries.first().map(|entry| &entry.name[..]);
    context.output.text(&invitation(&places, first))?;

    signals.wait();
    context.reporter.note("ending: answering what was asked");
    if let Err(unfinished) = server.stop(GRACE) {
        bail!("{unfinished} within {} s", GRACE.as_secs());
    }
    Ok(Exit::Done)
}

/// What is worth a line for whoever runs the server.
fn told(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Opened {
            connection,
            peer,
            export,
        } => Some(format!("{connection}: {peer} opened {export}")),
        Event::Closed {
            connection,
            outcome: Err(error),
            ..
        } => Some(format!("{connection}: lost: {error}")),
        Event::TurnedAway { peer } => Some(format!("turned {peer} away: too many clients")),
        Event::AcceptFailed { error } => Some(format!("cannot accept a client: {error}")),
        _ => None,
    }
}

/// Lines to copy, for one export.
fn invitation(places: &[Place], export: Option<&str>) -> String {
    let addresses: Vec<String> = places.iter().map(|place| shown(&place.address())).collect();
    let mut text = format!("Serving on {}. Ctrl-C ends it.\n", addresses.join(" and "));
    let Some(place) = places.first() else {
        return text;
    };
    let mut line = |what: &str, command: String| {
        text.push_str(&format!("\n  {what:<10}  {command}"));
    };
    let all = quoted(&place.uri(""));
    line("list", format!("nbdinfo --list {all}"));
    let Some(export) = export else {
        text.push_str("\n\nNo points yet: they appear here as backups make them.");
        return text;
    };
    let uri = quoted(&place.uri(export));
    let guestfish = quoted(&place.guestfish_uri(export));
    let name = quoted(&shown(export));
    line("raw image", format!("nbdcopy {uri} disk.raw"));
    line(
        "qcow2",
        format!("qemu-img convert -O qcow2 {uri} disk.qcow2"),
    );
    line(
        "files",
        format!("guestfish --ro --format=raw -a {guestfish} -i"),
    );
    let device = format!("nbd-client {} -N {name} /dev/nbd0", place.nbd_client());
    line("device", device);
    text
}
