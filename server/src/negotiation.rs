//! The handshake: from the first byte to the transmission phase ("Fixed newstyle negotiation").
//!
//! The export named last stays open until another is named, and the one of which contexts are
//! selected until others are, so that what the client was told about it, the contexts it selected and
//! what it gets in the end belong to the same export.

use std::io::{BufReader, IoSlice, Read, Write};
use std::sync::Arc;

use crate::channel::{Incoming, Outgoing, TlsMode, start_tls};
use crate::client::Client;
use crate::context::{BASE_ALLOCATION, Context};
use crate::error::Error;
use crate::export::{BlockSizes, Export, Features};
use crate::exports::{Exports, Listing, OpenError};
use crate::limits::{
    CONTEXTS_MAX, INTAKE_BYTES, Limits, OPTION_BYTES_MAX, OPTION_SKIPPED_BYTES_MAX, OPTIONS_MAX,
    PAYLOAD_BYTES_MAX, STRING_BYTES_MAX,
};
use crate::socket::Peer;
use crate::stream_io::{Patience, read_whole, skip, write_whole};
use crate::tls::Tls;
use crate::transmission::Session;
use crate::wire::Malformed;
use crate::wire::handshake::{
    ClientFlags, TransmissionFlags, encode_export_name_reply, encode_greeting,
};
use crate::wire::option::{ClientOption, ContextRequest, InfoRequest, OptionHeader};
use crate::wire::option_reply::{INFO_BLOCK_SIZE, OptionError, OptionReply, ReplyBody};

const STOPPING: &str = "the server is stopping";

/// A connection on which nothing has been said yet: any pair of a reader and a writer.
///
/// The time limits work as far as the pair returns from blocking calls with
/// [`WouldBlock`](std::io::ErrorKind::WouldBlock) or [`TimedOut`](std::io::ErrorKind::TimedOut)
/// now and then, as sockets with timeouts do.
#[derive(Debug)]
pub struct Connection<R, W> {
    reader: R,
    writer: W,
    limits: Limits,
    tls: TlsMode,
    peer: Option<Peer>,
}

impl<R: Read, W: Write> Connection<R, W> {
    /// A connection with a client, in plain text.
    pub fn new(reader: R, writer: W, limits: Limits) -> Self {
        Connection {
            reader,
            writer,
            limits,
            tls: TlsMode::Off,
            peer: None,
        }
    }

    /// Says where the client comes from, for [`Exports`] that want to know.
    #[must_use]
    pub fn with_peer(mut self, peer: Peer) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Offers TLS to the client, or requires it.
    #[must_use]
    pub fn with_tls(mut self, tls: TlsMode) -> Self {
        self.tls = tls;
        self
    }

    /// Negotiates until the client has chosen an export, or has left in good order (`None`).
    pub fn negotiate(self, exports: &dyn Exports) -> Result<Option<Session<R, W>>, Error> {
        self.negotiate_if(exports, &|| true)
    }

    /// As [`negotiate`](Self::negotiate), but asks `may_start` before the client is told that the
    /// transmission phase begins.
    pub(crate) fn negotiate_if(
        self,
        exports: &dyn Exports,
        may_start: &dyn Fn() -> bool,
    ) -> Result<Option<Session<R, W>>, Error> {
        let mut negotiation = Negotiation {
            reader: BufReader::with_capacity(INTAKE_BYTES, Incoming::Plain(self.reader)),
            writer: Outgoing::Plain(self.writer),
            tls: self.tls,
            client: Client {
                peer: self.peer,
                ..Client::default()
            },
            flags: None,
            patience: Patience::with_handshake(self.limits.handshake),
            exports,
            may_start,
            opened: None,
            structured: false,
            contexts: None,
        };
        loop {
            match negotiation.run() {
                Ok(Ending::Agreed(agreed)) => {
                    let Negotiation { reader, writer, .. } = negotiation;
                    let session = Session::new(reader, writer, agreed, self.limits);
                    return Ok(Some(session));
                }
                Ok(Ending::StartTls(tls)) => negotiation = negotiation.start_tls(&tls)?,
                Ok(Ending::Left) => {
                    negotiation.writer.close();
                    return Ok(None);
                }
                Err(error) => {
                    negotiation.writer.close();
                    return Err(error);
                }
            }
        }
    }
}

/// What client and server agreed on for the transmission phase.
pub(crate) struct Agreed {
    pub(crate) name: String,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) size_bytes: u64,
    pub(crate) features: Features,
    pub(crate) block_sizes: BlockSizes,
    pub(crate) structured: bool,
    /// A context's number is its place here.
    pub(crate) contexts: Vec<SelectedContext>,
}

/// A context the client selected.
pub(crate) enum SelectedContext {
    Allocation,
    Own(Box<dyn Context>),
}

struct Negotiation<'a, R, W> {
    reader: BufReader<Incoming<R>>,
    writer: Outgoing<W>,
    tls: TlsMode,
    client: Client,
    /// What the client said to the greeting, which is exchanged once, TLS or not.
    flags: Option<ClientFlags>,
    patience: Patience,
    exports: &'a dyn Exports,
    may_start: &'a dyn Fn() -> bool,
    opened: Option<(String, Arc<dyn Export>)>,
    structured: bool,
    contexts: Option<Selection>,
}

/// The contexts that the client selected, and of which export.
struct Selection {
    name: String,
    export: Arc<dyn Export>,
    contexts: Vec<SelectedContext>,
}

/// What ends the options, for the time being or for good.
enum Ending {
    Agreed(Agreed),
    StartTls(Tls),
    Left,
}

/// An error reply to one option.
type Refusal = (OptionError, String);

impl<R: Read, W: Write> Negotiation<'_, R, W> {
    /// Begins anew within TLS: nothing counts that was said before ("`NBD_OPT_STARTTLS`").
    fn start_tls(self, tls: &Tls) -> Result<Self, Error> {
        let mut patience = self.patience;
        let (reader, writer) = start_tls(tls, self.reader, self.writer, &mut patience)?;
        let client = Client {
            peer: self.client.peer,
            encrypted: true,
            certificate: writer.certificate(),
        };
        Ok(Negotiation {
            reader,
            writer,
            patience,
            client,
            opened: None,
            structured: false,
            contexts: None,
            ..self
        })
    }

    fn greet(&mut self) -> Result<ClientFlags, Error> {
        if let Some(flags) = self.flags {
            return Ok(flags);
        }
        self.send(&encode_greeting())?;
        let mut flags = [0; ClientFlags::BYTES];
        self.receive(&mut flags)?;
        let flags = ClientFlags::decode(flags).map_err(Error::malformed("client flags"))?;
        self.flags = Some(flags);
        Ok(flags)
    }

    fn run(&mut self) -> Result<Ending, Error> {
        let flags = self.greet()?;

        for _ in 0..OPTIONS_MAX {
            let mut head = [0; OptionHeader::BYTES];
            self.receive(&mut head)?;
            let header = OptionHeader::decode(head).map_err(Error::malformed("option"))?;
            if self.tls_is_missing() && !header.may_precede_tls() {
                self.demand_tls(header)?;
                continue;
            }
            let Some(data) = self.option_data(header)? else {
                continue;
            };
            let option = match ClientOption::decode(header, &data) {
                Ok(option) => option,
                Err(error) if header.is_export_name() => {
                    return Err(Error::malformed("export name")(error));
                }
                Err(error) => {
                    let code = match error {
                        Malformed::TooManyQueries => OptionError::TooBig,
                        _ => OptionError::Invalid,
                    };
                    self.refuse(header.option, (code, error.to_string()))?;
                    continue;
                }
            };
            if let ClientOption::ExportName(name) = option {
                return self.export_name(name, flags).map(Ending::Agreed);
            }
            if option == ClientOption::Abort {
                // The client may have gone without waiting for the reply, which is as good.
                let _ = self.reply(header.option, ReplyBody::Ack);
                return Ok(Ending::Left);
            }
            if option == ClientOption::StartTls {
                match self.may_start_tls(flags) {
                    Err(refusal) => self.refuse(header.option, refusal)?,
                    Ok(tls) => {
                        self.reply(header.option, ReplyBody::Ack)?;
                        return Ok(Ending::StartTls(tls));
                    }
                }
                continue;
            }
            // What keeps the server busy counts, even if nobody is waited for.
            self.patience.check()?;
            let go = matches!(option, ClientOption::Go(_));
            match self.answer(header.option, option)? {
                Err(refusal) => self.refuse(header.option, refusal)?,
                Ok(()) if go && !(self.may_start)() => {
                    let refusal = (OptionError::Shutdown, STOPPING.to_owned());
                    self.refuse(header.option, refusal)?;
                }
                Ok(()) => {
                    self.reply(header.option, ReplyBody::Ack)?;
                    if go && let Some((name, export)) = self.opened.take() {
                        return Ok(Ending::Agreed(self.agree(name, export)));
                    }
                }
            }
        }
        Err(Error::TooManyOptions)
    }

    fn tls_is_missing(&self) -> bool {
        matches!(self.tls, TlsMode::Required(_)) && !self.client.encrypted
    }

    /// Refuses an option that came in plain text, whatever it is ("FORCEDTLS mode").
    fn demand_tls(&mut self, header: OptionHeader) -> Result<(), Error> {
        if header.is_export_name() {
            return Err(Error::TlsRequired);
        }
        self.skip_option(header)?;
        let message = "this server requires TLS".to_owned();
        self.refuse(header.option, (OptionError::TlsRequired, message))
    }

    fn may_start_tls(&self, flags: ClientFlags) -> Result<Tls, Refusal> {
        match &self.tls {
            _ if self.client.encrypted => {
                Err((OptionError::Invalid, "TLS is running already".to_owned()))
            }
            TlsMode::Allowed(tls) | TlsMode::Required(tls) if flags.fixed_newstyle => {
                Ok(tls.clone())
            }
            _ => Err(unsupported("this server does not offer TLS")),
        }
    }

    /// The data of an option; `None` if it was too long and has been answered so.
    fn option_data(&mut self, header: OptionHeader) -> Result<Option<Vec<u8>>, Error> {
        let length = header.length as usize;
        if length <= OPTION_BYTES_MAX {
            let mut data = vec![0; length];
            self.receive(&mut data)?;
            return Ok(Some(data));
        }
        self.skip_option(header)?;
        let refusal = (OptionError::TooBig, "option too long".to_owned());
        self.refuse(header.option, refusal)?;
        Ok(None)
    }

    fn skip_option(&mut self, header: OptionHeader) -> Result<(), Error> {
        if header.length > OPTION_SKIPPED_BYTES_MAX || header.is_export_name() {
            return Err(Error::OptionTooLong {
                bytes: header.length,
            });
        }
        let (reader, patience) = (&mut self.reader, &mut self.patience);
        skip(reader, header.length.into(), "read an option", patience)
    }

    /// Sends all replies to an option but the last.
    fn answer(&mut self, number: u32, option: ClientOption) -> Result<Result<(), Refusal>, Error> {
        match option {
            ClientOption::List => self.list(number),
            ClientOption::Info(request) | ClientOption::Go(request) => self.info(number, &request),
            ClientOption::StructuredReply => {
                self.structured = true;
                Ok(Ok(()))
            }
            ClientOption::ListMetaContext(request) => self.list_contexts(number, &request),
            ClientOption::SetMetaContext(request) => self.set_contexts(number, &request),
            ClientOption::Unknown(_)
            | ClientOption::ExportName(_)
            | ClientOption::Abort
            | ClientOption::StartTls => Ok(Err(unsupported("unknown option"))),
        }
    }

    fn list(&mut self, number: u32) -> Result<Result<(), Refusal>, Error> {
        let listings = match self.exports.list(&self.client) {
            Ok(listings) => listings,
            Err(error) => return Ok(Err((OptionError::Policy, error.to_string()))),
        };
        for Listing { name, description } in listings.iter().cloned() {
            // Another name could not be asked for.
            if name.len() <= STRING_BYTES_MAX && !name.contains('\0') {
                let description = bounded(description);
                let body = ReplyBody::Server { name, description };
                self.reply(number, body)?;
            }
        }
        Ok(Ok(()))
    }

    fn info(&mut self, number: u32, request: &InfoRequest) -> Result<Result<(), Refusal>, Error> {
        let export = match self.open(&request.name) {
            Ok(export) => export,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let flags = transmission_flags(export.features(), self.structured);
        let size_bytes = export.size();
        self.reply(number, ReplyBody::Export { size_bytes, flags })?;
        self.reply(number, ReplyBody::Name(request.name.clone()))?;
        if let Some(description) = export.description() {
            self.reply(number, ReplyBody::Description(bounded(description)))?;
        }
        let sizes = export.block_sizes();
        if request.items.contains(&INFO_BLOCK_SIZE) || sizes.minimum() > 1 {
            let body = ReplyBody::BlockSize {
                minimum: sizes.minimum(),
                preferred: sizes.preferred(),
                payload_max: PAYLOAD_BYTES_MAX,
            };
            self.reply(number, body)?;
        }
        Ok(Ok(()))
    }

    fn list_contexts(
        &mut self,
        number: u32,
        request: &ContextRequest,
    ) -> Result<Result<(), Refusal>, Error> {
        let export = match self.open_for_contexts(request) {
            Ok(export) => export,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut names = vec![BASE_ALLOCATION.to_owned()];
        names.extend(export.contexts());
        if !request.queries.is_empty() {
            // "namespace:" asks for all of a namespace; any other query is a name.
            names.retain(|name| request.queries.iter().any(|query| matches(query, name)));
            let unknown = |query: &&String| !is_namespace(query) && !names.contains(query);
            let unknown = match distinct(request.queries.iter().filter(unknown)) {
                Ok(unknown) => unknown,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let known = unknown.into_iter().filter(|name| export.has_context(name));
            names.extend(known.cloned().collect::<Vec<_>>());
        }
        for name in names {
            self.reply(number, ReplyBody::MetaContext { id: 0, name })?;
        }
        Ok(Ok(()))
    }

    fn set_contexts(
        &mut self,
        number: u32,
        request: &ContextRequest,
    ) -> Result<Result<(), Refusal>, Error> {
        // Also a request that fails replaces what was selected before.
        self.contexts = None;
        let export = match self.open_for_contexts(request) {
            Ok(export) => export,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let names = match distinct(request.queries.iter()) {
            Ok(names) => names,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut contexts = Vec::new();
        for name in names {
            let context = if name == BASE_ALLOCATION {
                SelectedContext::Allocation
            } else if let Some(context) = export.context(name) {
                SelectedContext::Own(context)
            } else {
                continue;
            };
            let body = ReplyBody::MetaContext {
                id: contexts.len() as u32,
                name: name.clone(),
            };
            self.reply(number, body)?;
            contexts.push(context);
        }
        self.contexts = Some(Selection {
            name: request.name.clone(),
            export,
            contexts,
        });
        Ok(Ok(()))
    }

    fn open_for_contexts(&mut self, request: &ContextRequest) -> Result<Arc<dyn Export>, Refusal> {
        if !self.structured {
            let message = "metadata contexts need structured replies".to_owned();
            return Err((OptionError::Invalid, message));
        }
        self.open(&request.name)
    }

    fn open(&mut self, name: &str) -> Result<Arc<dyn Export>, Refusal> {
        if let Some((opened, export)) = &self.opened
            && opened == name
        {
            return Ok(export.clone());
        }
        // The one that was open is closed first: a registry may count what is open.
        self.opened = None;
        if let Some(selection) = &self.contexts
            && selection.name == name
        {
            let export = selection.export.clone();
            self.opened = Some((name.to_owned(), export.clone()));
            return Ok(export);
        }
        let opened = self.exports.open(name, &self.client);
        let export = opened.map_err(|error| match error {
            OpenError::Unavailable(message) => (OptionError::Unknown, message),
            OpenError::Refused(message) => (OptionError::Policy, message),
        })?;
        self.opened = Some((name.to_owned(), export.clone()));
        Ok(export)
    }

    fn export_name(&mut self, name: String, said: ClientFlags) -> Result<Agreed, Error> {
        let export = self
            .open(&name)
            .map_err(|(_, reason)| Error::NoSuchExport { reason })?;
        if !(self.may_start)() {
            let reason = STOPPING.to_owned();
            return Err(Error::NoSuchExport { reason });
        }
        let agreed = self.agree(name, export);
        let flags = transmission_flags(agreed.features, agreed.structured);
        self.send(&encode_export_name_reply(agreed.size_bytes, flags, said))?;
        Ok(agreed)
    }

    fn agree(&mut self, name: String, export: Arc<dyn Export>) -> Agreed {
        let contexts = match self.contexts.take() {
            Some(selection) if selection.name == name => selection.contexts,
            _ => Vec::new(),
        };
        Agreed {
            size_bytes: export.size(),
            features: export.features(),
            block_sizes: export.block_sizes(),
            structured: self.structured,
            name,
            export,
            contexts,
        }
    }

    fn refuse(&mut self, option: u32, (code, message): Refusal) -> Result<(), Error> {
        let message = bounded(message);
        self.reply(option, ReplyBody::Error { code, message })
    }

    fn reply(&mut self, option: u32, body: ReplyBody) -> Result<(), Error> {
        self.send(&OptionReply { option, body }.encode())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut slices = [IoSlice::new(bytes)];
        let patience = &mut self.patience;
        write_whole(&mut self.writer, &mut slices, "answer an option", patience)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        read_whole(
            &mut self.reader,
            bytes,
            "read an option",
            &mut self.patience,
        )
    }
}

/// What the client may use ("Transmission flags").
fn transmission_flags(features: Features, structured: bool) -> TransmissionFlags {
    use TransmissionFlags as Flag;
    let mut flags = Flag::HAS_FLAGS | Flag::SEND_FLUSH | Flag::SEND_FUA;
    let mut set = |wanted: bool, flag: u16| flags |= if wanted { flag } else { 0 };
    set(!features.writable, Flag::READ_ONLY);
    set(features.writable, Flag::SEND_WRITE_ZEROES);
    set(features.writable, Flag::SEND_FAST_ZERO);
    set(features.writable && features.trim, Flag::SEND_TRIM);
    set(features.cache, Flag::SEND_CACHE);
    set(features.multi_conn, Flag::CAN_MULTI_CONN);
    set(features.rotational, Flag::ROTATIONAL);
    set(structured, Flag::SEND_DF);
    TransmissionFlags(flags)
}

fn unsupported(message: &str) -> Refusal {
    (OptionError::Unsupported, message.to_owned())
}

/// Whether a query lists a context: by its name, or by its namespace and a colon.
fn matches(query: &str, name: &str) -> bool {
    query == name || is_namespace(query) && name.starts_with(query)
}

fn is_namespace(query: &str) -> bool {
    query
        .strip_suffix(':')
        .is_some_and(|namespace| !namespace.contains(':'))
}

/// The queries without repetitions, before the export is asked about any of them.
fn distinct<'a>(queries: impl Iterator<Item = &'a String>) -> Result<Vec<&'a String>, Refusal> {
    let mut names: Vec<&String> = Vec::new();
    for query in queries {
        if !names.contains(&query) {
            if names.len() == CONTEXTS_MAX {
                let message = format!("more than {CONTEXTS_MAX} contexts in one option");
                return Err((OptionError::TooBig, message));
            }
            names.push(query);
        }
    }
    Ok(names)
}

/// Makes a text for a human reader a string of the protocol.
fn bounded(mut text: String) -> String {
    text.retain(|character| character != '\0');
    while text.len() > STRING_BYTES_MAX {
        let end = (0..=STRING_BYTES_MAX).rfind(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
    }
    text
}
