//! What a client asks for during the handshake ("Option types").

use super::handshake::IHAVEOPT;
use super::{Malformed, Take};
use crate::limits::QUERIES_MAX;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;

/// The head of every option; `length` bytes of data follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Number of the option, repeated in each reply to it.
    pub option: u32,
    /// Length of its data in bytes.
    pub length: u32,
}

impl OptionHeader {
    /// Length in bytes.
    pub const BYTES: usize = 16;

    /// Whether this is `NBD_OPT_EXPORT_NAME`, whose errors cannot be answered.
    pub fn is_export_name(self) -> bool {
        self.option == EXPORT_NAME
    }

    /// Whether a server that requires TLS accepts this option in plain text: `NBD_OPT_STARTTLS` and
    /// `NBD_OPT_ABORT` ("FORCEDTLS mode").
    pub fn may_precede_tls(self) -> bool {
        matches!(self.option, STARTTLS | ABORT)
    }

    /// Checks the magic number.
    pub fn decode(bytes: [u8; Self::BYTES]) -> Result<Self, Malformed> {
        let mut take = Take::new(&bytes);
        take.magic(IHAVEOPT)?;
        Ok(OptionHeader {
            option: take.u32()?,
            length: take.u32()?,
        })
    }

    /// The header as sent.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&IHAVEOPT.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// An option with its data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientOption {
    /// `NBD_OPT_EXPORT_NAME`: start the transmission phase, or drop the connection.
    ExportName(String),
    /// `NBD_OPT_ABORT`: end the session. Its data is ignored, as the document asks.
    Abort,
    /// `NBD_OPT_LIST`: name all exports.
    List,
    /// `NBD_OPT_STARTTLS`
    StartTls,
    /// `NBD_OPT_INFO`: describe an export.
    Info(InfoRequest),
    /// `NBD_OPT_GO`: describe an export and start the transmission phase.
    Go(InfoRequest),
    /// `NBD_OPT_STRUCTURED_REPLY`
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`
    ListMetaContext(ContextRequest),
    /// `NBD_OPT_SET_META_CONTEXT`
    SetMetaContext(ContextRequest),
    /// Any other number: to be answered with `NBD_REP_ERR_UNSUP`.
    Unknown(u32),
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export; empty means the default export.
    pub name: String,
    /// The `NBD_INFO` types asked for.
    pub items: Vec<u16>,
}

/// The data of the two options about metadata contexts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRequest {
    /// The export; empty means the default export.
    pub name: String,
    /// The queries, `namespace:leaf` each.
    pub queries: Vec<String>,
}

impl ClientOption {
    /// Decodes the data that followed `header`.
    pub fn decode(header: OptionHeader, data: &[u8]) -> Result<Self, Malformed> {
        let mut take = Take::new(data);
        let option = match header.option {
            EXPORT_NAME => ClientOption::ExportName(take.rest_string()?.to_owned()),
            ABORT => return Ok(ClientOption::Abort),
            LIST => ClientOption::List,
            STARTTLS => ClientOption::StartTls,
            INFO => ClientOption::Info(InfoRequest::take(&mut take)?),
            GO => ClientOption::Go(InfoRequest::take(&mut take)?),
            STRUCTURED_REPLY => ClientOption::StructuredReply,
            LIST_META_CONTEXT => ClientOption::ListMetaContext(ContextRequest::take(&mut take)?),
            SET_META_CONTEXT => ClientOption::SetMetaContext(ContextRequest::take(&mut take)?),
            number => return Ok(ClientOption::Unknown(number)),
        };
        take.finish()?;
        Ok(option)
    }

    /// The option as a client sends it, header included.
    pub fn encode(&self) -> Vec<u8> {
        let (option, data) = match self {
            ClientOption::ExportName(name) => (EXPORT_NAME, name.as_bytes().to_vec()),
            ClientOption::Abort => (ABORT, Vec::new()),
            ClientOption::List => (LIST, Vec::new()),
            ClientOption::StartTls => (STARTTLS, Vec::new()),
            ClientOption::Info(request) => (INFO, request.encode()),
            ClientOption::Go(request) => (GO, request.encode()),
            ClientOption::StructuredReply => (STRUCTURED_REPLY, Vec::new()),
            ClientOption::ListMetaContext(request) => (LIST_META_CONTEXT, request.encode()),
            ClientOption::SetMetaContext(request) => (SET_META_CONTEXT, request.encode()),
            ClientOption::Unknown(number) => (*number, Vec::new()),
        };
        let length = data.len() as u32;
        let mut bytes = OptionHeader { option, length }.encode().to_vec();
        bytes.extend(data);
        bytes
    }
}

impl InfoRequest {
    fn take(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let name = take.long_string()?.to_owned();
        let items = (0..take.u16()?)
            .map(|_| take.u16())
            .collect::<Result<_, _>>()?;
        Ok(InfoRequest { name, items })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.name.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&(self.items.len() as u16).to_be_bytes());
        for item in &self.items {
            bytes.extend_from_slice(&item.to_be_bytes());
        }
        bytes
    }
}

impl ContextRequest {
    fn take(take: &mut Take<'_>) -> Result<Self, Malformed> {
        let name = take.long_string()?.to_owned();
        let count = take.u32()?;
        if count as usize > QUERIES_MAX {
            return Err(Malformed::TooManyQueries);
        }
        // No allocation by the count: it is the sender's claim. Each query takes its bytes.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(take.long_string()?.to_owned());
        }
        Ok(ContextRequest { name, queries })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.name.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            bytes.extend_from_slice(&(query.len() as u32).to_be_bytes());
            bytes.extend_from_slice(query.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ANY_STRING;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<ClientOption, Malformed> {
        let (head, data) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
        ClientOption::decode(OptionHeader::decode(*head)?, data)
    }

    fn any_option() -> impl Strategy<Value = ClientOption> {
        let info = (ANY_STRING, prop::collection::vec(any::<u16>(), 0..5))
            .prop_map(|(name, items)| InfoRequest { name, items });
        let context = (ANY_STRING, prop::collection::vec(ANY_STRING, 0..5))
            .prop_map(|(name, queries)| ContextRequest { name, queries });
        prop_oneof![
            ANY_STRING.prop_map(ClientOption::ExportName),
            Just(ClientOption::Abort),
            Just(ClientOption::List),
            Just(ClientOption::StartTls),
            info.clone().prop_map(ClientOption::Info),
            info.prop_map(ClientOption::Go),
            Just(ClientOption::StructuredReply),
            context.clone().prop_map(ClientOption::ListMetaContext),
            context.prop_map(ClientOption::SetMetaContext),
            (11u32..).prop_map(ClientOption::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn options_survive_the_round_trip(option in any_option()) {
            prop_assert_eq!(decode(&option.encode()), Ok(option));
        }

        #[test]
        fn an_option_cut_short_is_never_taken_for_a_whole_one(
            option in any_option(), keep: prop::sample::Index,
        ) {
            let bytes = option.encode();
            let cut = &bytes[..keep.index(bytes.len())];
            prop_assert!(decode(cut).as_ref() != Ok(&option));
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(option in 0u32..13, data: Vec<u8>) {
            let length = data.len() as u32;
            let _ = ClientOption::decode(OptionHeader { option, length }, &data);
            let _ = decode(&data);
        }
    }

    #[test]
    fn a_count_of_four_billion_queries_is_refused() {
        let header = OptionHeader {
            option: SET_META_CONTEXT,
            length: 8,
        };
        let data = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            ClientOption::decode(header, &data),
            Err(Malformed::TooManyQueries)
        );
    }

    #[test]
    fn a_name_of_4097_bytes_is_refused() {
        let name = "n".repeat(4097);
        let option = ClientOption::ExportName(name);
        assert_eq!(decode(&option.encode()), Err(Malformed::StringTooLong));
    }

    #[test]
    fn a_name_with_a_nul_is_refused() {
        let option = ClientOption::ExportName("disk\0".to_owned());
        assert_eq!(decode(&option.encode()), Err(Malformed::Nul));
    }
}
