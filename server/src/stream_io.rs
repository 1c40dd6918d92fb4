//! Whole messages over a stream, with patience that ends.
//!
//! Time is looked at only when a read or write comes back short: the usual case, a message that is
//! there, costs no clock. A stream that blocks forever defeats the limits, so sockets are given
//! timeouts ([`Limits::tick`](crate::Limits)), on which a read or write returns and is tried again.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use crate::error::Error;

/// How long to go on with one message.
pub(crate) struct Patience {
    limit: Duration,
    since: Option<Instant>,
    late: fn() -> Error,
}

impl Patience {
    /// Counts from the first time the message makes us wait.
    pub(crate) fn with_message(limit: Duration) -> Self {
        Patience {
            limit,
            since: None,
            late: || Error::Stalled,
        }
    }

    /// Counts from now, for the whole handshake.
    pub(crate) fn with_handshake(limit: Duration) -> Self {
        Patience {
            limit,
            since: Some(Instant::now()),
            late: || Error::HandshakeTimeout,
        }
    }

    pub(crate) fn check(&mut self) -> Result<(), Error> {
        if self.since.get_or_insert_with(Instant::now).elapsed() > self.limit {
            return Err((self.late)());
        }
        Ok(())
    }
}

/// Whether the stream only asks to be tried again.
pub(crate) fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Fills `buffer`.
pub(crate) fn read_whole(
    reader: &mut impl Read,
    mut buffer: &mut [u8],
    verb: &'static str,
    patience: &mut Patience,
) -> Result<(), Error> {
    while !buffer.is_empty() {
        match reader.read(buffer) {
            Ok(0) => return Err(Error::io(verb)(ErrorKind::UnexpectedEof.into())),
            Ok(count) if count == buffer.len() => return Ok(()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(error.kind()) => {}
            Err(error) => return Err(Error::io(verb)(error)),
        }
        patience.check()?;
    }
    Ok(())
}

/// Reads `count` bytes and forgets them.
pub(crate) fn skip(
    reader: &mut impl Read,
    count: u64,
    verb: &'static str,
    patience: &mut Patience,
) -> Result<(), Error> {
    let mut waste = [0; 4096];
    let mut left = count;
    while left > 0 {
        let piece = left.min(waste.len() as u64) as usize;
        read_whole(reader, &mut waste[..piece], verb, patience)?;
        left -= piece as u64;
    }
    Ok(())
}

/// Writes all of `slices`, in one system call where the stream takes them, and flushes.
pub(crate) fn write_whole(
    writer: &mut impl Write,
    mut slices: &mut [IoSlice<'_>],
    verb: &'static str,
    patience: &mut Patience,
) -> Result<(), Error> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match writer.write_vectored(slices) {
            Ok(0) => return Err(Error::io(verb)(ErrorKind::WriteZero.into())),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(error.kind()) => {}
            Err(error) => return Err(Error::io(verb)(error)),
        }
        if !slices.is_empty() {
            patience.check()?;
        }
    }
    loop {
        match writer.flush() {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_timeout(error.kind()) => {}
            Err(error) => return Err(Error::io(verb)(error)),
        }
        patience.check()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_client_that_trickles_a_message_runs_out_of_patience() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_read_timeout(Some(Duration::from_millis(5)))
            .expect("a timeout");
        let mut patience = Patience::with_message(Duration::from_millis(30));
        let client = std::thread::spawn(move || {
            while theirs.write(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = read_whole(&mut ours, &mut [0; 1 << 20], "read", &mut patience);
        assert!(matches!(result, Err(Error::Stalled)), "{result:?}");
        drop(ours);
        client.join().expect("the client ends");
    }

    #[test]
    fn a_client_that_takes_no_replies_runs_out_of_patience() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        ours.set_write_timeout(Some(Duration::from_millis(5)))
            .expect("a timeout");
        let mut patience = Patience::with_message(Duration::from_millis(30));
        let data = vec![0; 8 << 20];
        let mut slices = [IoSlice::new(&data)];
        let result = write_whole(&mut ours, &mut slices, "write", &mut patience);
        assert!(matches!(result, Err(Error::Stalled)), "{result:?}");
        drop(theirs);
    }
}
