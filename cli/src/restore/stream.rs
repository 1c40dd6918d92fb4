//! Writing a disk to standard output, byte after byte.
//!
//! The disk is read in windows, in parallel inside each; one thread writes a window while the next
//! one is read.

use std::io::Write;
use std::sync::Mutex;

use anyhow::{Context, Result};
use virtkeep_repo::{ByteLen, Cancel, DiskOffset, DiskReader, DiskSink, Progress, SourceError};

/// Bytes read ahead at once; up to three windows are in memory.
const WINDOW_BYTES: u64 = 16 << 20;

/// Writes the whole disk to `out` in order.
pub(crate) fn write_to(
    out: &mut (dyn Write + Send),
    reader: &DiskReader,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let (windows, to_write) = crossbeam_channel::bounded::<Window>(1);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> std::io::Result<()> {
            for window in to_write {
                for part in window.into_parts() {
                    out.write_all(&part)?;
                }
            }
            out.flush()
        });
        let size = reader.size().0;
        let mut read = Ok(());
        for start in (0..size).step_by(WINDOW_BYTES as usize) {
            let end = size.min(start + WINDOW_BYTES);
            let window = Window::new(start, end);
            read = reader.copy_to(
                DiskOffset(start),
                DiskOffset(end),
                &window,
                progress,
                cancel,
            );
            // The writer is gone when standard output is: its error says more.
            if read.is_err() || windows.send(window).is_err() {
                break;
            }
        }
        drop(windows);
        let written = writer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read?;
        written.context("cannot write to standard output")
    })
}

/// A piece of the disk in memory, zero where nothing is written. Writers copy into parts of it
/// that do not overlap, each under the lock of its part.
struct Window {
    start: u64,
    parts: Vec<Mutex<Vec<u8>>>,
}

const PART_BYTES: u64 = 256 << 10;

impl Window {
    fn new(start: u64, end: u64) -> Self {
        let parts = (start..end)
            .step_by(PART_BYTES as usize)
            .map(|at| Mutex::new(vec![0; PART_BYTES.min(end - at) as usize]))
            .collect();
        Self { start, parts }
    }

    fn into_parts(self) -> impl Iterator<Item = Vec<u8>> {
        let parts = self.parts.into_iter();
        parts.map(|part| part.into_inner().unwrap_or_else(|p| p.into_inner()))
    }
}

impl DiskSink for Window {
    fn write(&self, offset: DiskOffset, mut bytes: &[u8]) -> Result<(), SourceError> {
        let mut at = offset.0 - self.start;
        while !bytes.is_empty() {
            let inside = (at % PART_BYTES) as usize;
            let part = &self.parts[(at / PART_BYTES) as usize];
            let mut part = part.lock().unwrap_or_else(|p| p.into_inner());
            let len = bytes.len().min(part.len() - inside);
            let (now, later) = bytes.split_at(len);
            part[inside..inside + len].copy_from_slice(now);
            bytes = later;
            at += len as u64;
        }
        Ok(())
    }

    fn zero(&self, _: DiskOffset, _: ByteLen) -> Result<(), SourceError> {
        Ok(())
    }
}
