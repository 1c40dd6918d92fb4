//! Where a server can be reached: what `--listen` says, the place when it says nothing, and how
//! clients write it down.

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use nbd_server::{Listener, PassedSocket, Tls, TlsMode};

use crate::exit::usage;
use crate::output::shown;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("the path is missing behind `unix:`".to_owned());
            }
            return Ok(Self::Unix(path.into()));
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Self::Tcp(text.to_owned())),
            _ => Err("write unix:PATH, or HOST:PORT as in localhost:10809".to_owned()),
        }
    }
}

/// A place that clients can connect to, as they write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An absolute path.
    Unix(PathBuf),
    /// A host, as it was given, and the port that is really listened on.
    Tcp {
        /// Name or address.
        host: String,
        /// Never 0.
        port: u16,
        /// Whether clients have to use TLS.
        tls: bool,
    },
    /// A unix socket that was passed to this process: whoever did that knows where it is.
    Passed(String),
}

/// A socket passed by systemd, and where it is.
pub(crate) fn passed(socket: PassedSocket, tls: Option<&Tls>) -> Result<(Listener, Place)> {
    let name = socket.name().unwrap_or("unnamed").to_owned();
    // A plain unix socket has its own protection.
    let listener = socket.listen(tls.map_or(TlsMode::Off, |tls| TlsMode::Required(tls.clone())))?;
    match listener.tcp_address() {
        Some(address) => {
            let place = Place::of(address, address.ip().to_string(), tls.is_some());
            Ok((listener, place))
        }
        None => Ok((listener.with_tls(TlsMode::Off)?, Place::Passed(name))),
    }
}

impl Address {
    /// The socket of the server of a repository, in the directory for such things: below `/run` for
    /// root, else in the user's own runtime directory.
    pub(crate) fn usual(repository: &str) -> Result<Self> {
        let parent = if rustix::process::geteuid().is_root() {
            PathBuf::from("/run")
        } else {
            let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
            own.map(PathBuf::from).ok_or_else(|| {
                usage("there is no runtime directory (XDG_RUNTIME_DIR): say where with --listen unix:PATH")
            })?
        };
        let directory = parent.join("virtkeep");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| {
                format!(
                    "cannot create {}: choose another place with --listen unix:PATH",
                    directory.display()
                )
            })?;
        Ok(Self::Unix(directory.join(format!("{repository}.sock"))))
    }

    /// Listens there, on TCP with TLS where that is given. A name may have several addresses.
    pub(crate) fn listen(&self, tls: Option<&Tls>) -> Result<Vec<(Listener, Place)>> {
        match self {
            Self::Unix(path) => {
                let path = std::path::absolute(path)?;
                let listener = Listener::unix(&path)?;
                Ok(vec![(listener, Place::Unix(path))])
            }
            Self::Tcp(text) => {
                let addresses: Vec<SocketAddr> = text
                    .to_socket_addrs()
                    .with_context(|| format!("cannot find the host of {}", shown(text)))?
                    .collect();
                let host = text.rsplit_once(':').map_or("", |(host, _)| host);
                let mut listeners = Vec::new();
                for address in &addresses {
                    let listener = match tls {
                        Some(tls) => Listener::tcp_with_tls(*address, tls.clone()),
                        None => Listener::tcp(*address),
                    };
                    match listener {
                        Ok(listener) => {
                            let address = listener.tcp_address().unwrap_or(*address);
                            let place = Place::of(address, host.to_owned(), tls.is_some());
                            listeners.push((listener, place));
                        }
                        // One of several addresses of a name may not be there: IPv6, for example.
                        Err(nbd_server::Error::Listen { source, .. })
                            if source.kind() == std::io::ErrorKind::AddrNotAvailable
                                && addresses.len() > 1 => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                if listeners.is_empty() {
                    return Err(usage(format!("{} has no address here", shown(text))));
                }
                Ok(listeners)
            }
        }
    }
}

impl Place {
    fn of(address: SocketAddr, host: String, tls: bool) -> Self {
        let host = match address {
            // `localhost` may be both.
            SocketAddr::V6(address) if !host.starts_with('[') => {
                format!("[{}]", address.ip())
            }
            _ => host,
        };
        Self::Tcp {
            host,
            port: address.port(),
            tls,
        }
    }

    /// As in `--listen`.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Passed(name) => format!("the socket {name}"),
        }
    }

    /// The URI of an export; with an empty name, of the server. None where only others know it.
    pub(crate) fn uri(&self, export: &str) -> Option<String> {
        match self {
            Self::Unix(path) => Some(unix_uri(path, export)),
            Self::Tcp { host, port, tls } => {
                let export = escaped(export);
                let scheme = if *tls { "nbds" } else { "nbd" };
                Some(format!("{scheme}://{host}:{port}/{export}"))
            }
            Self::Passed(_) => None,
        }
    }

    /// The URI of an export as guestfish wants it; none with TLS, which it cannot.
    pub(crate) fn guestfish_uri(&self, export: &str) -> Option<String> {
        match self {
            Self::Unix(path) => {
                let path = escaped_path(path);
                Some(format!("nbd:///{}?socket={path}", escaped(export)))
            }
            Self::Tcp { tls: false, .. } => self.uri(export),
            _ => None,
        }
    }

    /// What `nbd-client` wants in front of the name; none with TLS, for which it wants much more.
    pub(crate) fn nbd_client(&self) -> Option<String> {
        match self {
            Self::Unix(path) => Some(format!("-unix {}", quoted(&shown(&path.to_string_lossy())))),
            Self::Tcp {
                host,
                port,
                tls: false,
            } => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Some(format!("{host} {port}"))
            }
            _ => None,
        }
    }
}

/// The URI of an export on a unix socket.
pub(crate) fn unix_uri(socket: &Path, export: &str) -> String {
    let socket = escaped_path(socket);
    format!("nbd+unix:///{}?socket={socket}", escaped(export))
}

fn escaped_path(path: &Path) -> String {
    escaped_bytes(path.as_os_str().as_encoded_bytes())
}

fn escaped(text: &str) -> String {
    escaped_bytes(text.as_bytes())
}

/// Percent-encoding that is right in a path and in a query alike (RFC 3986, `pchar` and `/`, less
/// what programs take for more than it is).
fn escaped_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/@:".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// For a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_host_and_a_port() {
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        assert_eq!("unix:/run/x.sock".parse(), unix("/run/x.sock"));
        assert_eq!("unix:x:1".parse(), unix("x:1"));
        for tcp in ["localhost:10809", "[::1]:0", "127.0.0.1:65535"] {
            assert_eq!(tcp.parse(), Ok(Address::Tcp(tcp.to_owned())));
        }
        for wrong in [
            "",
            "unix:",
            "localhost",
            "/run/x.sock",
            "localhost:",
            "h:99999",
        ] {
            wrong.parse::<Address>().expect_err(wrong);
        }
    }

    #[test]
    fn names_survive_uris_and_shells() {
        let place = Place::Unix("/run/a b&c.sock".into());
        assert_eq!(
            place.uri("my vm/vda@2026-11-22T22:11:07").unwrap(),
            "nbd+unix:///my%20vm/vda@2026-11-22T22:11:07?socket=/run/a%20b%26c.sock"
        );
        let localhost =
            |address: &str, tls| Place::of(address.parse().unwrap(), "localhost".to_owned(), tls);
        let place = localhost("127.0.0.1:10809", true);
        assert_eq!(
            place.uri("ü?/vda@x").unwrap(),
            "nbds://localhost:10809/%C3%BC%3F/vda@x"
        );
        let place = localhost("[::1]:10809", false);
        assert_eq!(place.uri("").unwrap(), "nbd://[::1]:10809/");
        assert_eq!(place.nbd_client().unwrap(), "::1 10809");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
