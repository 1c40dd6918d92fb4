//! How far a recovery is, asked of libvirt; a server that has gone is started again on the way, for a
//! guest may be waiting for it.

use std::time::Duration;

use anyhow::Result;
use virtkeep_repo::Repository;

use super::claim::Claim;
use super::damage;
use super::machine::{Machine, State};
use super::record::{Home, Pinned};
use super::space::Space;
use super::wake::Waker;
use super::work::Work;
use super::{finish, place, server};
use crate::context::Context;
use crate::output::size;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a recovery is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    /// What the guest is doing; none where libvirt cannot be asked.
    pub(crate) state: Option<State>,
    /// Whether the point is being served.
    pub(crate) served: bool,
    /// Whether that had to be started again.
    pub(crate) started_again: bool,
    /// The share of the data that is in the images already, of each disk; none where nothing tells.
    pub(crate) disks: Vec<Option<f64>>,
    /// How many bytes are free where the images are; none where that cannot be looked at.
    pub(crate) free: Option<u64>,
    /// What is in the way, or may soon be.
    pub(crate) troubles: Vec<String>,
}

impl Status {
    fn tell_first(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        self.troubles.retain(|trouble| *trouble != text);
        self.troubles.insert(0, text);
    }
}

/// Looks at a recovery; none where it has just ended. Problems on the way are noted, and do not keep the rest
/// from being seen.
pub(crate) fn look(
    context: &Context,
    repo: &Repository,
    pinned: &Pinned,
) -> Result<Option<Status>> {
    let recovery = &pinned.recovery;
    let note = |error: anyhow::Error| {
        context
            .reporter
            .note(&format!("{}: {error:#}", recovery.domain));
    };
    place::make_socket_directory(&recovery.socket)?;
    // Whoever is at work looks after the server himself.
    let work = match recovery.home == Home::here() {
        true => Work::try_take(recovery)?,
        false => None,
    };
    if Pinned::of(repo, &pinned.pin)?.is_none() {
        return Ok(None);
    }
    let home = recovery.home.check(recovery);
    let claimed = home.and_then(|()| Claim::of(pinned).check(recovery));
    let started_again = work.is_some()
        && claimed.is_ok()
        && server::ensure_within(context, pinned, PATIENCE).unwrap_or_else(|error| {
            note(error);
            false
        });
    let mut status = Status {
        state: None,
        served: server::is_serving(&pinned.recovery),
        started_again,
        disks: vec![None; pinned.recovery.disks.len()],
        free: None,
        troubles: Vec::new(),
    };
    if let Ok(space) = Space::of(recovery) {
        status.free = Some(space.free);
        status.troubles.extend(space.warning());
    }
    if let Some(keeper) = server::keeper(recovery)?
        && !keeper.troubles.is_empty()
    {
        // It knows better what space there is.
        status.troubles = keeper.troubles;
    }
    let given_up = damage::given_up(recovery)?;
    if !given_up.is_empty() {
        let bytes = given_up.iter().map(|lost| lost.end - lost.start).sum();
        status.troubles.push(format!(
            "{} could not be read, and are zero now: see {}",
            size(bytes),
            recovery.lost_ranges().display()
        ));
    } else if damage::is_salvaging(recovery) {
        status.troubles.push(damage::STILL_GIVEN_UP.to_owned());
    }
    let asked = match claimed {
        Ok(()) => ask(pinned, work, &mut status),
        // What there is may be somebody else's.
        Err(error) => {
            status.tell_first(&error);
            Ok(())
        }
    };
    asked.unwrap_or_else(note);
    Ok(Some(status))
}

fn ask(pinned: &Pinned, work: Option<Work>, status: &mut Status) -> Result<()> {
    let mut machine = Machine::connect(&pinned.recovery)?;
    if let Some(mut work) = work {
        finish::go_on(&mut machine, &mut work)?;
    }
    let mut state = machine.state()?;
    if status.served {
        if let Err(error) = Waker::default().look(pinned, &mut machine, state) {
            status.tell_first(&error);
        }
        state = machine.state()?;
    }
    status.state = Some(state);
    if !state.is_active() {
        return Ok(());
    }
    let leaning = machine.leaning()?;
    for (disk, share) in pinned.recovery.disks.iter().zip(&mut status.disks) {
        *share = if leaning.contains(&disk.target) {
            let job = machine.job(&disk.target)?;
            Some(job.map_or(0.0, |job| job.done as f64 / job.total.max(1) as f64))
        } else {
            Some(1.0)
        };
    }
    Ok(())
}
