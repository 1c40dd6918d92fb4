//! `boot`: a guest runs from a point at once, and its data is moved in while it works.
//!
//! # What a recovery is made of, and in which order
//!
//! 1. The **pin**, which keeps the point and holds the [`record`]: everything that will be made, by name.
//!    It is durable before anything else is there.
//! 2. The directory, [`claim`]ed, the files, an **overlay** for each disk ([`overlay`]): empty, made durable, over an
//!    export of the point. No disk of the original is opened, nor named anywhere.
//! 3. The **server** ([`server`]), which serves the point, read-only, to QEMU alone ([`place`]).
//!    Then the definition, beside the images: it says that all is there.
//! 4. The **domain**, defined, then started. From here on the overlays hold what exists nowhere else.
//! 5. The **pull** ([`pull`]): QEMU copies what is not in an overlay yet, beneath the running guest, and
//!    then forgets the server. The definition still leads there, whatever libvirt does.
//! 6. **Settling** ([`finish`]): QEMU is made to write out all that it still holds of the images, which
//!    are then synced, and looked at: only if every byte is in them they stand on their own.
//! 7. **Letting go**: the definition is freed of the server, the server ends, socket, lock and log go,
//!    and last the pin.
//!
//! Whatever dies between two steps, the pin is there, and `--finish` begins with the first step that is
//! not done, for every step can be repeated; `--abort` undoes all of them, the pin last. Steps 1 to 4 are
//! undone at once when one of them fails: no guest has run yet. One process at a time does any of this
//! ([`work`]): a command, or the [`keeper`] when no command does.
//!
//! # Why no write of the guest is lost
//!
//! Every write goes to an overlay and to nothing else, and nothing here ever writes to an overlay that a
//! guest has used but QEMU and `qemu-img rebase`, which keep what is in it. Only `--abort` removes one,
//! after it was confirmed.
//!
//! - **The server dies**: QEMU waits for it, then stands the guest still; no error reaches the guest. It
//!   is started again by its keeper, or by the next `--status` or `--finish`, and the guest goes on.
//! - **The disk is full**: the pull leaves the guest what it needs ([`space`]); should nothing be left, QEMU stands the
//!   guest still, and it goes on when there is room ([`wake`]).
//! - **What the point holds is damaged**: who reads it is told so, and waits; only with `--salvage` zeroes take its
//!   place, and are listed ([`damage`]).
//! - **The command dies**: guest, server and pull go on, and the keeper brings the recovery to its end.
//! - **libvirtd is restarted**: QEMU does not notice; we connect again.
//! - **QEMU or the host dies**: as after a power cut, what the guest has flushed is in the overlay. What
//!   the pull has copied may be there or not, *even where the overlay's header names no backing image any
//!   more*: tried with QEMU 10.0, the tables of the copied data stay in memory after the pull has ended.
//!   That is why step 6 is there, and why `--finish`, while the pin is, puts the backing image back before
//!   it completes the overlay of a guest that is off.

pub(crate) mod abort;
pub(crate) mod claim;
pub(crate) mod damage;
pub(crate) mod finish;
pub(crate) mod keeper;
pub(crate) mod machine;
mod overlay;
pub(crate) mod place;
pub(crate) mod pull;
pub(crate) mod record;
pub(crate) mod server;
pub(crate) mod space;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod trial;
mod wake;
pub(crate) mod work;
