//! What a server answers during the handshake ("Option reply types").

use super::handshake::TransmissionFlags;
use super::{Malformed, Take};

const MAGIC: u64 = 0x0003_e889_0455_65a9;
const ERROR: u32 = 1 << 31;

/// The `NBD_INFO` item that asks for size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// One reply to one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionReply {
    /// The option's number.
    pub option: u32,
    /// The reply.
    pub body: ReplyBody,
}

/// The kinds of replies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyBody {
    /// `NBD_REP_ACK`: accepted, or end of a list.
    Ack,
    /// `NBD_REP_SERVER`: one export of the list.
    Server {
        /// Its name.
        name: String,
        /// For a human reader; may be empty.
        description: String,
    },
    /// `NBD_REP_INFO` with `NBD_INFO_EXPORT`.
    Export {
        /// Size of the export.
        size_bytes: u64,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// `NBD_REP_INFO` with `NBD_INFO_NAME`: the canonical name.
    Name(String),
    /// `NBD_REP_INFO` with `NBD_INFO_DESCRIPTION`.
    Description(String),
    /// `NBD_REP_INFO` with `NBD_INFO_BLOCK_SIZE`, all in bytes.
    BlockSize {
        /// Smallest length and alignment.
        minimum: u32,
        /// Smallest efficient length and alignment.
        preferred: u32,
        /// Longest payload of one request.
        payload_max: u32,
    },
    /// `NBD_REP_META_CONTEXT`
    MetaContext {
        /// The context's number in block status replies.
        id: u32,
        /// `namespace:leaf`
        name: String,
    },
    /// `NBD_REP_ERR_…`
    Error {
        /// Which error.
        code: OptionError,
        /// For a human reader; may be empty.
        message: String,
    },
}

/// The errors of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionError {
    /// `NBD_REP_ERR_UNSUP`: unknown option.
    Unsupported = ERROR | 1,
    /// `NBD_REP_ERR_POLICY`: known, but not allowed.
    Policy = ERROR | 2,
    /// `NBD_REP_ERR_INVALID`: malformed.
    Invalid = ERROR | 3,
    /// `NBD_REP_ERR_PLATFORM`: not supported on this platform.
    Platform = ERROR | 4,
    /// `NBD_REP_ERR_TLS_REQD`: TLS must be started first.
    TlsRequired = ERROR | 5,
    /// `NBD_REP_ERR_UNKNOWN`: the export is not available.
    Unknown = ERROR | 6,
    /// `NBD_REP_ERR_SHUTDOWN`: the server is stopping.
    Shutdown = ERROR | 7,
    /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: the client must ask for the size constraints.
    BlockSizeRequired = ERROR | 8,
    /// `NBD_REP_ERR_TOO_BIG`: more than the server is willing to process.
    TooBig = ERROR | 9,
}

impl OptionReply {
    /// Length of the head of a reply in bytes.
    pub const HEAD_BYTES: usize = 20;

    /// The reply as sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut data = Vec::new();
        let kind = self.body.encode(&mut data);
        let mut bytes = Vec::with_capacity(Self::HEAD_BYTES + data.len());
        bytes.extend_from_slice(&MAGIC.to_be_bytes());
        bytes.extend_from_slice(&self.option.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    /// How many bytes of data follow this head of a reply.
    pub fn data_bytes(head: &[u8; Self::HEAD_BYTES]) -> Result<u32, Malformed> {
        let mut take = Take::new(head);
        take.magic(MAGIC)?;
        take.bytes(8)?;
        take.u32()
    }

    /// Decodes one whole reply, as a client would.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        take.magic(MAGIC)?;
        let option = take.u32()?;
        let kind = take.u32()?;
        let length = take.u32()?;
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        let mut data = Take::new(take.bytes(length)?);
        let body = ReplyBody::take(kind, &mut data)?;
        data.finish()?;
        take.finish()?;
        Ok(OptionReply { option, body })
    }
}

impl ReplyBody {
    /// Appends the data and returns the reply type.
    fn encode(&self, data: &mut Vec<u8>) -> u32 {
        match self {
            ReplyBody::Ack => 1,
            ReplyBody::Server { name, description } => {
                data.extend_from_slice(&(name.len() as u32).to_be_bytes());
                data.extend_from_slice(name.as_bytes());
                data.extend_from_slice(description.as_bytes());
                2
            }
            ReplyBody::Export { size_bytes, flags } => {
                data.extend_from_slice(&0u16.to_be_bytes());
                data.extend_from_slice(&size_bytes.to_be_bytes());
                data.extend_from_slice(&flags.0.to_be_bytes());
                3
            }
            ReplyBody::Name(name) => {
                data.extend_from_slice(&1u16.to_be_bytes());
                data.extend_from_slice(name.as_bytes());
                3
            }
            ReplyBody::Description(description) => {
                data.extend_from_slice(&2u16.to_be_bytes());
                data.extend_from_slice(description.as_bytes());
                3
            }
            ReplyBody::BlockSize {
                minimum,
                preferred,
                payload_max,
            } => {
                data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
                for size in [minimum, preferred, payload_max] {
                    data.extend_from_slice(&size.to_be_bytes());
                }
                3
            }
            ReplyBody::MetaContext { id, name } => {
                data.extend_from_slice(&id.to_be_bytes());
                data.extend_from_slice(name.as_bytes());
                4
            }
            ReplyBody::Error { code, message } => {
                data.extend_from_slice(message.as_bytes());
                *code as u32
            }
        }
    }

    fn take(kind: u32, take: &mut Take<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            1 => ReplyBody::Ack,
            2 => ReplyBody::Server {
                name: take.long_string()?.to_owned(),
                description: take.rest_string()?.to_owned(),
            },
            3 => match take.u16()? {
                0 => ReplyBody::Export {
                    size_bytes: take.u64()?,
                    flags: TransmissionFlags(take.u16()?),
                },
                1 => ReplyBody::Name(take.rest_string()?.to_owned()),
                2 => ReplyBody::Description(take.rest_string()?.to_owned()),
                INFO_BLOCK_SIZE => ReplyBody::BlockSize {
                    minimum: take.u32()?,
                    preferred: take.u32()?,
                    payload_max: take.u32()?,
                },
                item => return Err(Malformed::Undefined(item.into())),
            },
            4 => ReplyBody::MetaContext {
                id: take.u32()?,
                name: take.rest_string()?.to_owned(),
            },
            kind => ReplyBody::Error {
                code: OptionError::decode(kind)?,
                message: take.rest_string()?.to_owned(),
            },
        })
    }
}

impl OptionError {
    const ALL: [OptionError; 9] = {
        use OptionError::*;
        [
            Unsupported,
            Policy,
            Invalid,
            Platform,
            TlsRequired,
            Unknown,
            Shutdown,
            BlockSizeRequired,
            TooBig,
        ]
    };

    fn decode(kind: u32) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|&code| code as u32 == kind)
            .ok_or(Malformed::Undefined(kind.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ANY_STRING;
    use proptest::prelude::*;

    fn any_body() -> impl Strategy<Value = ReplyBody> {
        let code = prop::sample::select(OptionError::ALL.to_vec());
        prop_oneof![
            Just(ReplyBody::Ack),
            (ANY_STRING, ANY_STRING)
                .prop_map(|(name, description)| ReplyBody::Server { name, description }),
            (any::<u64>(), any::<u16>()).prop_map(|(size_bytes, flags)| ReplyBody::Export {
                size_bytes,
                flags: TransmissionFlags(flags)
            }),
            ANY_STRING.prop_map(ReplyBody::Name),
            ANY_STRING.prop_map(ReplyBody::Description),
            any::<[u32; 3]>().prop_map(|[minimum, preferred, payload_max]| {
                ReplyBody::BlockSize {
                    minimum,
                    preferred,
                    payload_max,
                }
            }),
            (any::<u32>(), ANY_STRING).prop_map(|(id, name)| ReplyBody::MetaContext { id, name }),
            (code, ANY_STRING).prop_map(|(code, message)| ReplyBody::Error { code, message }),
        ]
    }

    proptest! {
        #[test]
        fn replies_survive_the_round_trip(option: u32, body in any_body()) {
            let reply = OptionReply { option, body };
            let bytes = reply.encode();
            let head = bytes.first_chunk().expect("a head");
            prop_assert_eq!(OptionReply::data_bytes(head), Ok(bytes.len() as u32 - 20));
            prop_assert_eq!(OptionReply::decode(&bytes), Ok(reply));
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(kind: u32, data: Vec<u8>) {
            let _ = OptionReply::decode(&data);
            let mut bytes = OptionReply { option: 3, body: ReplyBody::Ack }.encode();
            bytes[12..16].copy_from_slice(&kind.to_be_bytes());
            bytes[16..20].copy_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend(data);
            let _ = OptionReply::decode(&bytes);
        }
    }
}
