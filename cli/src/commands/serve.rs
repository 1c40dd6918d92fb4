//! `virtkeep serve`: disks of points as NBD exports.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use nbd_server::{Event, Listener, PassedSocket, Server, Tls};
use serde::Serialize;

use crate::context::Context;
use crate::exit::Exit;
use crate::output::shown;
use crate::serve::address::{Address, Place, passed, quoted};
use crate::serve::catalog::Catalog;
use crate::serve::room::Room;
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
  virtkeep serve --listen kvm1:10809 --tls-cert kvm1.pem --tls-key kvm1.key

An export is named DOMAIN/DISK@WHEN, as in web1/vda@latest, and any way to write
a point will do. Names are looked up when a client connects: new points are
there at once, and what is not in use can be forgotten meanwhile.

Ctrl-C or SIGTERM: requests that have arrived are answered, then the server
ends with exit code 0. A second one ends it at once.")]
pub(crate) struct Args {
    /// Only these points, or single disks of them [default: all]
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Where to listen: unix:PATH or HOST:PORT, which without TLS must be on this machine; may be
    /// given several times [default: what systemd passed, else a unix socket in /run/virtkeep or in
    /// $XDG_RUNTIME_DIR/virtkeep]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,

    /// Require TLS on TCP, with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Accept only clients whose certificate one of these authorities has signed (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
}

/// A place where clients can connect, as programs see it. All of them are printed once the server
/// accepts clients.
#[derive(Serialize)]
struct Line {
    r#type: &'static str,
    address: String,
    uri: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit> {
    // Before there are other threads: it changes the environment.
    let sockets = PassedSocket::take_all()?;
    let tls = tls(args)?;
    let specs = args
        .points
        .iter()
        .map(|point| context.parse_point(point))
        .collect::<Result<Vec<_>>>()?;
    let repo = context.open_to_read()?;
    let points = context.points(&repo)?;
    for spec in &specs {
        context.find_kept(&repo, spec, &points)?;
    }
    drop(points);
    let short_id = repo.id().to_string()[..8].to_owned();
    let room = Room::take();
    let catalog = Catalog::new(
        repo,
        specs,
        context.zone.clone(),
        context.reporter.clone(),
        room.disks_max,
    )?;
    // Before anybody can connect, so that no signal finds the server without a handler.
    let signals = Signals::asking_to_end()?;
    let mut listening = Vec::new();
    for socket in sockets {
        let (listener, place) = passed(socket, tls.as_ref())?;
        if is_open_to_all(&listener) {
            context.reporter.note(
                "every user of this machine may connect to the socket that was passed, and read \
                 all that is served: set SocketMode=0600 in its unit",
            );
        }
        listening.push((listener, place));
    }
    for address in &args.listen {
        listening.extend(address.listen(tls.as_ref())?);
    }
    if listening.is_empty() {
        listening.extend(Address::usual(&short_id)?.listen(None)?);
    }
    let (listeners, places): (Vec<_>, Vec<Place>) = listening.into_iter().unzip();
    let reporter = context.reporter.clone();
    let server = Server::new(Arc::new(catalog.clone()))
        .with_limits(room.limits)
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

/// Whether any user may connect to a unix socket, as far as its own mode tells.
fn is_open_to_all(listener: &Listener) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    listener
        .unix_path()
        .and_then(|path| std::fs::metadata(path).ok())
        .is_some_and(|file| file.mode() & WRITABLE_BY_OTHERS != 0)
}

fn tls(args: &Args) -> Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    Ok(Some(match &args.tls_client_ca {
        Some(authorities) => Tls::verifying_clients(certificate, key, authorities)?,
        None => Tls::new(certificate, key)?,
    }))
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
    let Some((place, all)) = places
        .iter()
        .find_map(|place| Some((place, place.uri("")?)))
    else {
        return text;
    };
    let mut line = |what: &str, command: String| {
        text.push_str(&format!("\n  {what:<10}  {command}"));
    };
    line("list", format!("nbdinfo --list {}", quoted(&all)));
    let Some(export) = export else {
        text.push_str("\n\nNo points yet: they appear here as backups make them.");
        return text;
    };
    if let Some(uri) = place.uri(export) {
        let uri = quoted(&uri);
        line("raw image", format!("nbdcopy {uri} disk.raw"));
        let qcow2 = format!("qemu-img convert -O qcow2 {uri} disk.qcow2");
        line("qcow2", qcow2);
    }
    if let Some(uri) = place.guestfish_uri(export) {
        let uri = quoted(&uri);
        let guestfish = format!("guestfish --ro --format=raw -a {uri} -i");
        line("files", guestfish);
    }
    if let Some(server) = place.nbd_client() {
        let name = quoted(&shown(export));
        line("device", format!("nbd-client {server} -N {name} /dev/nbd0"));
    }
    text
}
