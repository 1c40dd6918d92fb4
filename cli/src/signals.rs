//! Ctrl-C and SIGTERM.
//!
//! A command that leaves nothing behind simply dies. One that has something to clean up calls
//! [`cancel_in_order`] first: then the first signal asks it to stop, and every further one only says
//! what is still being done. The exit code is 128 and the number of the first signal either way.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Arriving;
use virtkeep_repo::Cancel;

use crate::output::complain;

static CAUGHT: AtomicI32 = AtomicI32::new(0);
static CLEANING: Mutex<&str> = Mutex::new("");

/// From now on signals set the flag that is returned. `cleaning` says what the end in order is
/// busy with, as in "still {cleaning}".
pub(crate) fn cancel_in_order(cleaning: &'static str) -> io::Result<Cancel> {
    now_cleaning(cleaning);
    let cancel = Cancel::new();
    let seen = cancel.clone();
    let mut signals = Arriving::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for number in &mut signals {
                let first = CAUGHT
                    .compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok();
                seen.cancel();
                let cleaning = CLEANING.lock().map(|text| *text).unwrap_or_default();
                if first {
                    complain(&format!("\nvirtkeep: interrupted, {cleaning}"));
                } else {
                    complain(&format!("\nvirtkeep: still {cleaning}, please wait"));
                }
            }
        })?;
    Ok(cancel)
}

/// What the end in order is busy with from here on.
pub(crate) fn now_cleaning(cleaning: &'static str) {
    if let Ok(mut current) = CLEANING.lock() {
        *current = cleaning;
    }
}

/// The signals that ask a command to end which would otherwise go on for ever.
pub(crate) struct Signals(Arriving);

impl Signals {
    /// From now on they are waited for, and no longer end the program by themselves.
    pub(crate) fn asking_to_end() -> io::Result<Self> {
        Arriving::new([SIGINT, SIGTERM, SIGHUP]).map(Self)
    }

    /// Waits for the first. From then on a further one ends the program at once.
    pub(crate) fn wait(mut self) {
        self.0.forever().next();
        std::thread::spawn(move || {
            if let Some(number) = self.0.forever().next() {
                let _ = signal_hook::low_level::emulate_default_handler(number);
            }
        });
    }
}

/// From now on signals that ask the program to end are passed over.
pub(crate) fn ignore() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // A handler instead of the default action; nobody reads the flag.
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(())
}

/// The signal that asked the command to stop, if any did.
pub(crate) fn caught() -> Option<i32> {
    match CAUGHT.load(Ordering::SeqCst) {
        0 => None,
        number => Some(number),
    }
}
