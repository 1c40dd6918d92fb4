//! The handshake: what a client is told of exports, whoever it is and whatever it asks.

mod common;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use common::{Client, MIB, Served, contexts, disk, info};
use nbd_server::wire::handshake::TransmissionFlags;
use nbd_server::wire::option::ClientOption;
use nbd_server::wire::option_reply::{OptionError, ReplyBody};
use nbd_server::wire::request::Command;
use nbd_server::{
    Client as Asking, Export, ExportError, ExportMap, Exports, Features, Limits, Listener, Listing,
    MemoryDisk, OpenError, Peer, Server,
};

#[test]
fn options_that_are_wrong_get_error_replies_and_the_client_may_go_on() {
    let served = Served::one(disk());
    let mut client = served.client();
    let mut refused = |option: &[u8], expected: OptionError| {
        let replies = client.raw_option(option);
        let [ReplyBody::Error { code, .. }] = replies[..] else {
            panic!("{option:?}: {replies:?}");
        };
        assert_eq!(code, expected, "{option:?}");
    };
    let set = ClientOption::SetMetaContext(contexts("disk", &["base:allocation"]));
    refused(&ClientOption::StartTls.encode(), OptionError::Unsupported);
    refused(&ClientOption::Unknown(4).encode(), OptionError::Unsupported);
    refused(
        &ClientOption::Go(info("nope")).encode(),
        OptionError::Unknown,
    );
    refused(&ClientOption::Info(info("")).encode(), OptionError::Unknown);
    refused(&set.encode(), OptionError::Invalid);
    refused(b"IHAVEOPT\0\0\0\x03\0\0\0\x01x", OptionError::Invalid);
    refused(
        b"IHAVEOPT\0\0\0\x07\0\0\0\x06\xff\xff\xff\xff\0\0",
        OptionError::Invalid,
    );
    let mut long = b"IHAVEOPT\0\0\0\x07\0\x02\0\0".to_vec();
    long.resize(16 + (2 << 16), 0);
    refused(&long, OptionError::TooBig);
    client.go("disk");
}

#[test]
fn one_handshake_sees_one_export_even_if_the_name_moves_on() {
    /// Each opening gives a bigger disk.
    struct Growing(Mutex<u64>);
    impl Exports for Growing {
        fn list(&self, _: &Asking) -> Result<Arc<[Listing]>, ExportError> {
            Ok([].into())
        }
        fn open(&self, _: &str, _: &Asking) -> Result<Arc<dyn Export>, OpenError> {
            let mut size = self.0.lock().expect("unpoisoned");
            *size += MIB;
            Ok(Arc::new(MemoryDisk::new(*size)))
        }
    }
    let served = Served::start(Growing(Mutex::new(0)), Limits::default());
    let mut client = served.client();
    let first = client.accepted(&ClientOption::Info(info("latest")));
    assert_eq!(client.go("latest"), first);
    assert_ne!(served.client().go("latest"), first);
}

#[test]
fn a_writable_export_promises_nothing_about_several_connections_unless_it_says_so() {
    struct Writable;
    impl Export for Writable {
        fn size(&self) -> u64 {
            MIB
        }
        fn features(&self) -> Features {
            Features {
                writable: true,
                ..Features::default()
            }
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), ExportError> {
            Ok(())
        }
    }
    let served = Served::one(Writable);
    let replies = served.client().go("disk");
    let Some(ReplyBody::Export { flags, .. }) = replies.first() else {
        panic!("{replies:?}");
    };
    assert_eq!(flags.0 & TransmissionFlags::CAN_MULTI_CONN, 0);
}

#[test]
fn exports_come_and_go_while_clients_are_connected() {
    /// Names that can be changed while it is served.
    #[derive(Default)]
    struct Changing(Mutex<BTreeMap<String, Arc<dyn Export>>>);
    impl Exports for Changing {
        fn list(&self, _: &Asking) -> Result<Arc<[Listing]>, ExportError> {
            let listing = |name: &String| Listing {
                name: name.clone(),
                description: String::new(),
            };
            Ok(self
                .0
                .lock()
                .expect("unpoisoned")
                .keys()
                .map(listing)
                .collect())
        }
        fn open(&self, name: &str, _: &Asking) -> Result<Arc<dyn Export>, OpenError> {
            let exports = self.0.lock().expect("unpoisoned");
            let unavailable = || OpenError::Unavailable("it has gone".to_owned());
            exports.get(name).cloned().ok_or_else(unavailable)
        }
    }
    let changing = Arc::new(Changing::default());
    let first: Arc<dyn Export> = Arc::new(disk());
    let add = |name: &str, export: &Arc<dyn Export>| {
        let mut exports = changing.0.lock().expect("unpoisoned");
        exports.insert(name.to_owned(), export.clone());
    };
    add("disk", &first);
    let served = Served::start(changing.clone(), Limits::default());
    let mut connected = served.session();
    let mut choosing = served.client();
    assert_eq!(choosing.accepted(&ClientOption::List).len(), 1);

    changing.0.lock().expect("unpoisoned").clear();
    add("new", &(Arc::new(MemoryDisk::new(MIB)) as Arc<dyn Export>));
    assert_eq!(Arc::strong_count(&first), 2, "held by its client alone");
    let listed = choosing.accepted(&ClientOption::List);
    assert!(
        matches!(&listed[..], [ReplyBody::Server { name, .. }] if name == "new"),
        "{listed:?}"
    );
    let gone = choosing.option(&ClientOption::Go(info("disk")));
    assert!(
        matches!(
            gone[..],
            [ReplyBody::Error {
                code: OptionError::Unknown,
                ..
            }]
        ),
        "{gone:?}"
    );
    choosing.go("new");
    connected.assert_served();
    connected.send(Command::Disconnect, 0, 0, 0);
    assert!(connected.is_closed());
    served.wait_for_connections(1);
    assert_eq!(Arc::strong_count(&first), 1, "nobody holds it any more");
}

/// Shows a disk to local processes, and nothing to others.
struct Local(ExportMap);

impl Exports for Local {
    fn list(&self, client: &Asking) -> Result<Arc<[Listing]>, ExportError> {
        match client.peer() {
            Some(Peer::Local) => self.0.list(client),
            _ => Ok([].into()),
        }
    }
    fn open(&self, name: &str, client: &Asking) -> Result<Arc<dyn Export>, OpenError> {
        assert!(!client.is_encrypted() && client.certificate().is_none());
        match client.peer() {
            Some(Peer::Local) => self.0.open(name, client),
            other => Err(OpenError::Refused(format!("not for {other:?}"))),
        }
    }
}

#[test]
fn exports_may_look_at_who_asks() {
    let exports = || Local(ExportMap::new().with("disk", Arc::new(disk())));
    let served = Served::start(exports(), Limits::default());
    assert_eq!(served.client().accepted(&ClientOption::List).len(), 1);
    served.session().assert_served();

    let listener = Listener::tcp((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = listener.tcp_address().expect("TCP");
    let server = Server::new(Arc::new(exports()));
    let _running = server.start(vec![listener]).expect("the server starts");
    let mut client = Client::connect(address);
    assert_eq!(client.accepted(&ClientOption::List), []);
    let refused = client.option(&ClientOption::Go(info("disk")));
    let [ReplyBody::Error { code, message }] = &refused[..] else {
        panic!("{refused:?}");
    };
    assert_eq!(*code, OptionError::Policy);
    assert!(message.contains("127.0.0.1"), "{message}");
}
