//! A connection that has not opened an export yet: what the server has to offer.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::builder::Builder;
use crate::drive::settle;
use crate::error::{Error, Operation};
use crate::handle::Handle;
use crate::info::ExportInfo;
use crate::raw::{Phase, RawHandle, last_error};
use crate::request::shield;
use crate::sys::{self, CompletionCallback, ContextCallback, ListCallback};

/// Most entries a server may list; more is taken as hostile.
const LIST_ENTRIES_MAX: usize = 100_000;

/// An export as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Name to open it by.
    pub name: String,
    /// Text for people; often empty.
    pub description: String,
}

/// A connection on which options are still being negotiated.
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Negotiation {
    raw: RawHandle,
    settings: Builder,
}

impl Negotiation {
    pub(crate) fn new(
        raw: RawHandle,
        phase: Phase,
        settings: Builder,
    ) -> Result<Negotiation, Error> {
        if phase == Phase::Negotiating {
            Ok(Negotiation { raw, settings })
        } else {
            Err(Error::refused(
                Operation::List,
                "the server speaks an old protocol that has no negotiation",
            ))
        }
    }

    /// All exports that the server lists. Servers may hide some, or refuse to list any.
    pub fn exports(&mut self) -> Result<Vec<Export>, Error> {
        let (listing, completion, results) = Listing::start();
        let list = ListCallback {
            callback: Some(on_export),
            user_data: listing,
            free: Some(free_listing),
        };
        // SAFETY: the handle is valid; each callback owns its own reference-free `Listing`,
        // which the library gives back through `free`.
        let status = unsafe { sys::nbd_aio_opt_list(self.raw.as_ptr(), list, completion) };
        let entries = self.collect(status, &results)?;
        Ok(entries
            .into_iter()
            .map(|(name, description)| Export { name, description })
            .collect())
    }

    /// The metadata contexts that the server offers for an export.
    pub fn meta_contexts(&mut self, export: &str) -> Result<Vec<String>, Error> {
        self.raw.set_export_name(export)?;
        // The contexts asked for would narrow the question.
        self.raw.clear_meta_contexts()?;
        let (listing, completion, results) = Listing::start();
        let context = ContextCallback {
            callback: Some(on_context),
            user_data: listing,
            free: Some(free_listing),
        };
        // SAFETY: as in `exports`.
        let status =
            unsafe { sys::nbd_aio_opt_list_meta_context(self.raw.as_ptr(), context, completion) };
        let entries = self.collect(status, &results);
        self.restore_contexts()?;
        Ok(entries?.into_iter().map(|(name, _)| name).collect())
    }

    /// Size, flags and limits of an export, without opening it.
    pub fn info(&mut self, export: &str) -> Result<ExportInfo, Error> {
        self.raw.set_export_name(export)?;
        let (completion, results) = Listing::completion_only();
        // SAFETY: as in `exports`.
        let status = unsafe { sys::nbd_aio_opt_info(self.raw.as_ptr(), completion) };
        self.collect(status, &results)?;
        ExportInfo::query(&self.raw)
    }

    /// Opens an export with the settings of the [`Builder`].
    pub fn open(self, export: &str) -> Result<Handle, Error> {
        self.raw.set_export_name(export)?;
        let (completion, results) = Listing::completion_only();
        // SAFETY: as in `exports`.
        let status = unsafe { sys::nbd_aio_opt_go(self.raw.as_ptr(), completion) };
        self.collect(status, &results)?;
        if self.raw.phase() != Phase::Ready {
            return Err(Error::refused(
                Operation::Connect,
                "the server did not open the export",
            ));
        }
        self.settings.open(self.raw)
    }

    /// Ends the connection in order, without opening an export.
    pub fn abort(self) -> Result<(), Error> {
        self.raw.opt_abort()?;
        match settle(&self.raw, Operation::Shutdown, self.settings.deadline()) {
            // Being closed is what was asked for.
            Err(Error::Library { .. }) | Ok(()) => Ok(()),
            Err(other) => Err(other),
        }
    }

    fn restore_contexts(&self) -> Result<(), Error> {
        for context in &self.settings.contexts {
            self.raw.add_meta_context(context.as_str())?;
        }
        Ok(())
    }

    /// Waits for the end of an option and collects what its callbacks sent.
    fn collect(
        &self,
        status: c_int,
        results: &Receiver<Heard>,
    ) -> Result<Vec<(String, String)>, Error> {
        if status == -1 {
            return Err(last_error(Operation::List));
        }
        settle(&self.raw, Operation::List, self.settings.deadline())?;
        let mut entries = Vec::new();
        for heard in results.try_iter() {
            match heard {
                Heard::Entry(name, description) => entries.push((name, description)),
                Heard::End(0) => {}
                Heard::End(errno) => {
                    return Err(Error::Library {
                        operation: Operation::List,
                        message: format!(
                            "the server refused: {}",
                            std::io::Error::from_raw_os_error(errno)
                        ),
                        errno: Some(errno),
                    });
                }
                Heard::TooMany => {
                    return Err(Error::Protocol {
                        operation: Operation::List,
                        offset: 0,
                        reason: format!("more than {LIST_ENTRIES_MAX} entries"),
                    });
                }
            }
        }
        Ok(entries)
    }
}

/// What a callback heard from the server.
enum Heard {
    Entry(String, String),
    TooMany,
    /// The option is done, with this error number or 0.
    End(c_int),
}

/// What a callback owns: the way to report, and how much it has reported.
struct Listing {
    heard: Sender<Heard>,
    entries: usize,
}

impl Listing {
    /// User data for a listing callback, the completion callback, and where both report to.
    fn start() -> (*mut c_void, CompletionCallback, Receiver<Heard>) {
        let (sender, results) = channel();
        let listing = Listing::leak(sender.clone());
        (listing, Listing::completion(sender), results)
    }

    fn completion_only() -> (CompletionCallback, Receiver<Heard>) {
        let (sender, results) = channel();
        (Listing::completion(sender), results)
    }

    fn leak(heard: Sender<Heard>) -> *mut c_void {
        Box::into_raw(Box::new(Listing { heard, entries: 0 })).cast()
    }

    fn completion(heard: Sender<Heard>) -> CompletionCallback {
        CompletionCallback {
            callback: Some(on_end),
            user_data: Listing::leak(heard),
            free: Some(free_listing),
        }
    }

    fn entry(&mut self, name: String, description: String) {
        let heard = match self.entries {
            LIST_ENTRIES_MAX => Heard::TooMany,
            over if over > LIST_ENTRIES_MAX => return,
            _ => Heard::Entry(name, description),
        };
        self.entries += 1;
        // The receiver lives until the option has ended; if not, nobody wants to know.
        let _ = self.heard.send(heard);
    }
}

/// # Safety
/// `text` is null or NUL-terminated and valid during the call.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

unsafe extern "C" fn on_export(
    user_data: *mut c_void,
    name: *const c_char,
    description: *const c_char,
) -> c_int {
    shield((), || {
        // SAFETY: `user_data` is the `Listing` of this callback, alive until its `free`, and
        // callbacks run one at a time; the strings are valid during the callback.
        unsafe { (*user_data.cast::<Listing>()).entry(text(name), text(description)) }
    });
    0
}

unsafe extern "C" fn on_context(user_data: *mut c_void, name: *const c_char) -> c_int {
    shield((), || {
        // SAFETY: as in `on_export`.
        unsafe { (*user_data.cast::<Listing>()).entry(text(name), String::new()) }
    });
    0
}

unsafe extern "C" fn on_end(user_data: *mut c_void, error: *mut c_int) -> c_int {
    shield((), || {
        // SAFETY: as in `on_export`; `error` is the library's and readable.
        let (listing, errno) = unsafe { (&*user_data.cast::<Listing>(), *error) };
        let _ = listing.heard.send(Heard::End(errno));
    });
    1
}

unsafe extern "C" fn free_listing(user_data: *mut c_void) {
    shield((), || {
        // SAFETY: `user_data` comes from `Box::into_raw` in `leak`, and `free` runs once.
        drop(unsafe { Box::from_raw(user_data.cast::<Listing>()) });
    });
}
