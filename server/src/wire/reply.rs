//! What a server answers in the transmission phase ("Simple reply message", "Structured reply
//! chunk message", "Structured reply types", "Error values").

use super::{Malformed, Take};
use crate::limits::STRING_BYTES_MAX;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const FLAG_DONE: u16 = 1 << 0;

const TYPE_NONE: u16 = 0;
const TYPE_DATA: u16 = 1;
const TYPE_HOLE: u16 = 2;
const TYPE_BLOCK_STATUS: u16 = 5;
const TYPE_ERROR: u16 = 1 << 15 | 1;

/// The errors a reply can carry ("Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// `NBD_EPERM`: the export is read-only, or the operation is not allowed.
    NotPermitted = 1,
    /// `NBD_EIO`
    Io = 5,
    /// `NBD_ENOMEM`
    OutOfMemory = 12,
    /// `NBD_EINVAL`
    Invalid = 22,
    /// `NBD_ENOSPC`: no space, or a write beyond the end.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: too long for one request.
    Overflow = 75,
    /// `NBD_ENOTSUP`: zeroing would not be fast.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the server is stopping.
    Shutdown = 108,
}

impl ErrorCode {
    fn decode(number: u32) -> Result<Self, Malformed> {
        use ErrorCode::*;
        [
            NotPermitted,
            Io,
            OutOfMemory,
            Invalid,
            NoSpace,
            Overflow,
            NotSupported,
            Shutdown,
        ]
        .into_iter()
        .find(|&code| code as u32 == number)
        .ok_or(Malformed::Undefined(number.into()))
    }
}

/// A run of bytes with one status, as block status replies list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, not zero.
    pub length: u32,
    /// What the flags mean depends on the context.
    pub flags: u32,
}

impl Extent {
    /// Length in bytes.
    pub const BYTES: usize = 8;

    /// The extent as sent.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..].copy_from_slice(&self.flags.to_be_bytes());
        bytes
    }
}

/// The fixed-length part of a reply, or of a chunk of one. Content, where there is any, follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; a successful simple read is followed by its data.
    Simple {
        /// `None` is success.
        error: Option<ErrorCode>,
    },
    /// `NBD_REPLY_TYPE_NONE`: success without content, always the last chunk.
    None,
    /// `NBD_REPLY_TYPE_OFFSET_DATA`: `length` bytes follow.
    Data {
        /// Where, in bytes from the start of the export.
        offset: u64,
        /// Length of the data in bytes, not zero.
        length: u32,
        /// The last chunk of this reply.
        done: bool,
    },
    /// `NBD_REPLY_TYPE_OFFSET_HOLE`: `length` bytes that read as zeroes.
    Hole {
        /// Where, in bytes from the start of the export.
        offset: u64,
        /// Length of the hole in bytes, not zero.
        length: u32,
        /// The last chunk of this reply.
        done: bool,
    },
    /// `NBD_REPLY_TYPE_BLOCK_STATUS`: `extents` times [`Extent`] follow.
    BlockStatus {
        /// The context's number, from the handshake.
        context: u32,
        /// Number of extents, not zero.
        extents: u32,
        /// The last chunk of this reply.
        done: bool,
    },
    /// `NBD_REPLY_TYPE_ERROR`, always sent as the last chunk; `message` bytes of text follow.
    Error {
        /// What went wrong.
        code: ErrorCode,
        /// Length of the text in bytes.
        message: u16,
    },
}

/// An encoded [`ReplyHead`].
#[derive(Debug, Clone, Copy)]
pub struct HeadBytes {
    bytes: [u8; 32],
    length: usize,
}

impl HeadBytes {
    fn new() -> Self {
        HeadBytes {
            bytes: [0; 32],
            length: 0,
        }
    }

    fn put<const N: usize>(mut self, field: [u8; N]) -> Self {
        self.bytes[self.length..self.length + N].copy_from_slice(&field);
        self.length += N;
        self
    }

    fn chunk(done: bool, kind: u16, cookie: u64, payload: u32) -> Self {
        HeadBytes::new()
            .put(STRUCTURED_MAGIC.to_be_bytes())
            .put((u16::from(done) * FLAG_DONE).to_be_bytes())
            .put(kind.to_be_bytes())
            .put(cookie.to_be_bytes())
            .put(payload.to_be_bytes())
    }
}

impl AsRef<[u8]> for HeadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl ReplyHead {
    /// The head as sent.
    pub fn encode(&self, cookie: u64) -> HeadBytes {
        match *self {
            ReplyHead::Simple { error } => HeadBytes::new()
                .put(SIMPLE_MAGIC.to_be_bytes())
                .put(error.map_or(0, |code| code as u32).to_be_bytes())
                .put(cookie.to_be_bytes()),
            ReplyHead::None => HeadBytes::chunk(true, TYPE_NONE, cookie, 0),
            ReplyHead::Data {
                offset,
                length,
                done,
            } => HeadBytes::chunk(done, TYPE_DATA, cookie, length.saturating_add(8))
                .put(offset.to_be_bytes()),
            ReplyHead::Hole {
                offset,
                length,
                done,
            } => HeadBytes::chunk(done, TYPE_HOLE, cookie, 12)
                .put(offset.to_be_bytes())
                .put(length.to_be_bytes()),
            ReplyHead::BlockStatus {
                context,
                extents,
                done,
            } => HeadBytes::chunk(
                done,
                TYPE_BLOCK_STATUS,
                cookie,
                extents.saturating_mul(8).saturating_add(4),
            )
            .put(context.to_be_bytes()),
            ReplyHead::Error { code, message } => {
                HeadBytes::chunk(true, TYPE_ERROR, cookie, 6 + u32::from(message))
                    .put((code as u32).to_be_bytes())
                    .put(message.to_be_bytes())
            }
        }
    }

    /// Decodes the head of a reply, as a client would: the head, its cookie, and how many bytes
    /// of `bytes` it took.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u64, usize), Malformed> {
        let mut take = Take::new(bytes);
        match take.u32()? {
            SIMPLE_MAGIC => {
                let error = match take.u32()? {
                    0 => None,
                    number => Some(ErrorCode::decode(number)?),
                };
                return Ok((ReplyHead::Simple { error }, take.u64()?, 16));
            }
            STRUCTURED_MAGIC => {}
            found => return Err(Malformed::Magic(found.into())),
        }
        let flags = take.u16()?;
        let done = flags & FLAG_DONE != 0;
        let kind = take.u16()?;
        let cookie = take.u64()?;
        let payload = take.u32()?;
        let wrong_length = Malformed::Undefined(payload.into());
        let (head, length) = match kind {
            TYPE_NONE if payload == 0 && done => (ReplyHead::None, 20),
            TYPE_DATA if payload > 8 => {
                let (offset, length) = (take.u64()?, payload - 8);
                let head = ReplyHead::Data {
                    offset,
                    length,
                    done,
                };
                (head, 28)
            }
            TYPE_HOLE if payload == 12 => {
                let (offset, length) = (take.u64()?, take.u32()?);
                let head = ReplyHead::Hole {
                    offset,
                    length,
                    done,
                };
                (head, 32)
            }
            TYPE_BLOCK_STATUS if payload > 4 && (payload - 4).is_multiple_of(8) => {
                let (context, extents) = (take.u32()?, (payload - 4) / 8);
                let head = ReplyHead::BlockStatus {
                    context,
                    extents,
                    done,
                };
                (head, 24)
            }
            TYPE_ERROR if payload >= 6 => {
                let code = ErrorCode::decode(take.u32()?)?;
                let message = take.u16()?;
                if u32::from(message) != payload - 6 || usize::from(message) > STRING_BYTES_MAX {
                    return Err(wrong_length);
                }
                (ReplyHead::Error { code, message }, 26)
            }
            TYPE_NONE | TYPE_DATA | TYPE_HOLE | TYPE_BLOCK_STATUS | TYPE_ERROR => {
                return Err(wrong_length);
            }
            other => return Err(Malformed::Undefined(other.into())),
        };
        Ok((head, cookie, length))
    }

    /// How many bytes of content follow the head.
    pub fn content_bytes(&self) -> u64 {
        match *self {
            ReplyHead::Simple { .. } | ReplyHead::None | ReplyHead::Hole { .. } => 0,
            ReplyHead::Data { length, .. } => length.into(),
            ReplyHead::BlockStatus { extents, .. } => u64::from(extents) * Extent::BYTES as u64,
            ReplyHead::Error { message, .. } => message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_head() -> impl Strategy<Value = ReplyHead> {
        let code = prop::sample::select(vec![ErrorCode::NotPermitted, ErrorCode::Overflow]);
        prop_oneof![
            prop::option::of(code.clone()).prop_map(|error| ReplyHead::Simple { error }),
            Just(ReplyHead::None),
            (any::<u64>(), 1..u32::MAX - 8, any::<bool>()).prop_map(|(offset, length, done)| {
                ReplyHead::Data {
                    offset,
                    length,
                    done,
                }
            }),
            (any::<u64>(), 1..u32::MAX, any::<bool>()).prop_map(|(offset, length, done)| {
                ReplyHead::Hole {
                    offset,
                    length,
                    done,
                }
            }),
            (any::<u32>(), 1..1u32 << 20, any::<bool>()).prop_map(|(context, extents, done)| {
                ReplyHead::BlockStatus {
                    context,
                    extents,
                    done,
                }
            }),
            (code, 0..4096u16).prop_map(|(code, message)| ReplyHead::Error { code, message }),
        ]
    }

    proptest! {
        #[test]
        fn heads_survive_the_round_trip(head in any_head(), cookie: u64) {
            let encoded = head.encode(cookie);
            let bytes = encoded.as_ref();
            prop_assert_eq!(ReplyHead::decode(bytes), Ok((head, cookie, bytes.len())));
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(structured: bool, bytes: Vec<u8>) {
            let _ = ReplyHead::decode(&bytes);
            let magic = if structured { STRUCTURED_MAGIC } else { SIMPLE_MAGIC };
            let mut message = magic.to_be_bytes().to_vec();
            message.extend(bytes);
            let _ = ReplyHead::decode(&message);
        }
    }
}
