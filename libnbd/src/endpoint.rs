//! Where a server is, and what TLS is allowed to mean there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Operation};
use crate::raw::RawHandle;
use crate::sys;

/// A server to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An NBD URI: `nbd://host[:port]/export`, `nbds://…` (TLS),
    /// `nbd+unix:///export?socket=PATH`, `nbd+vsock://CID[:port]/export`. Its export name
    /// replaces the one set on the [`Builder`](crate::Builder).
    Uri(String),
    /// A unix socket.
    Unix(PathBuf),
    /// A host name or address and a TCP port. Name resolution blocks and knows no time limit.
    Tcp {
        /// Host name or literal IP address.
        host: String,
        /// Port; 10809 is the registered one.
        port: u16,
    },
    /// A program, with its arguments, that speaks NBD on its standard input and output.
    Command(Vec<OsString>),
    /// A program, with its arguments, that takes its listening socket by systemd socket
    /// activation, such as `qemu-nbd` or `nbdkit`.
    SocketActivation(Vec<OsString>),
}

impl Endpoint {
    /// A unix socket at `path`.
    pub fn unix(path: impl Into<PathBuf>) -> Endpoint {
        Endpoint::Unix(path.into())
    }

    /// A TCP port on a host.
    pub fn tcp(host: impl Into<String>, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.into(),
            port,
        }
    }

    /// An NBD URI.
    pub fn uri(uri: impl Into<String>) -> Endpoint {
        Endpoint::Uri(uri.into())
    }

    /// A program speaking NBD on standard input and output.
    pub fn command(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Endpoint {
        Endpoint::Command(argv.into_iter().map(Into::into).collect())
    }

    /// A program started by systemd socket activation.
    pub fn socket_activation(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Endpoint {
        Endpoint::SocketActivation(argv.into_iter().map(Into::into).collect())
    }

    /// Whether connecting starts a child process.
    pub(crate) fn is_subprocess(&self) -> bool {
        matches!(self, Endpoint::Command(_) | Endpoint::SocketActivation(_))
    }

    fn uri_scheme(&self) -> Option<String> {
        match self {
            Endpoint::Uri(uri) => Some(uri.split(':').next().unwrap_or("").to_ascii_lowercase()),
            _ => None,
        }
    }

    /// Whether TLS to this endpoint verifies the server's name against its certificate.
    fn authenticates(&self) -> bool {
        matches!(self, Endpoint::Tcp { .. }) || self.uri_scheme().as_deref() == Some("nbds")
    }

    /// Starts connecting without waiting.
    pub(crate) fn start(&self, handle: &RawHandle) -> Result<(), Error> {
        use std::os::unix::ffi::OsStrExt;
        match self {
            Endpoint::Uri(uri) => handle.connect_uri(uri.as_str()).map(drop),
            Endpoint::Unix(path) => {
                let path = path.as_os_str().as_bytes();
                // 1.14 accepts 108 bytes, which leaves no room for the terminator.
                if path.len() > 107 {
                    return Err(Error::refused(
                        Operation::Connect,
                        "the path of the unix socket is longer than 107 bytes",
                    ));
                }
                handle.connect_unix(path).map(drop)
            }
            Endpoint::Tcp { host, port } => handle.connect_tcp(host, *port),
            Endpoint::Command(argv) => handle.connect_command(argv, false),
            Endpoint::SocketActivation(argv) => handle.connect_command(argv, true),
        }
    }
}

/// Whether a connection is encrypted and authenticated by TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// No TLS; an `nbds://` URI is refused.
    #[default]
    Off,
    /// TLS or no connection. The server's certificate must be signed by the authority in
    /// `certificates` and name the host that was connected to.
    ///
    /// The directory must hold `ca-cert.pem`, and for servers that demand a client
    /// certificate `client-cert.pem` and `client-key.pem`. There is no variant without a
    /// directory, and TLS is only allowed over TCP (`Endpoint::Tcp` or `nbds://`): releases
    /// of libnbd before 1.18.5 and 1.20.3 accept *any* server certificate when no directory
    /// is set, and over a unix socket (CVE-2024-7383).
    Require {
        /// Directory of the certificates.
        certificates: PathBuf,
    },
}

impl Tls {
    /// TLS with the certificates in a directory.
    pub fn require(certificates: impl Into<PathBuf>) -> Tls {
        Tls::Require {
            certificates: certificates.into(),
        }
    }

    /// Applies the settings, refusing those that would not authenticate the server. A
    /// missing endpoint is a socket that the caller has connected.
    pub(crate) fn apply(
        &self,
        handle: &RawHandle,
        endpoint: Option<&Endpoint>,
    ) -> Result<(), Error> {
        let scheme = endpoint.and_then(Endpoint::uri_scheme);
        let secure_scheme = scheme.as_deref().is_some_and(|s| s.starts_with("nbds"));
        handle.set_uri_allow_local_file(false)?;
        match self {
            Tls::Off => {
                if secure_scheme {
                    return Err(Error::Tls(
                        "the URI asks for TLS, but no certificate directory is set".to_owned(),
                    ));
                }
                handle.set_tls(sys::TLS_DISABLE)?;
                handle.set_uri_allow_tls(sys::TLS_DISABLE)?;
                handle.set_uri_allow_transports(
                    sys::ALLOW_TRANSPORT_TCP
                        | sys::ALLOW_TRANSPORT_UNIX
                        | sys::ALLOW_TRANSPORT_VSOCK,
                )?;
            }
            Tls::Require { certificates } => {
                if !endpoint.is_some_and(Endpoint::authenticates) {
                    return Err(Error::Tls(
                        "required, but the server can only be authenticated over TCP, by its \
                         host name: use a host and port or an nbds:// URI"
                            .to_owned(),
                    ));
                }
                require_authority(certificates)?;
                if handle.supports_tls()? == 0 {
                    return Err(Error::Tls("this libnbd was built without TLS".to_owned()));
                }
                handle.set_tls(sys::TLS_REQUIRE)?;
                handle.set_tls_verify_peer(true)?;
                handle.set_tls_certificates(std::os::unix::ffi::OsStrExt::as_bytes(
                    certificates.as_os_str(),
                ))?;
                handle.set_uri_allow_tls(sys::TLS_REQUIRE)?;
                handle.set_uri_allow_transports(sys::ALLOW_TRANSPORT_TCP)?;
            }
        }
        Ok(())
    }

    /// Checks, after the address was parsed and before the handshake is driven, that
    /// nothing in a URI has weakened the settings (releases after 1.14 know
    /// `tls-verify-peer=false`).
    pub(crate) fn still_holds(&self, handle: &RawHandle) -> Result<(), Error> {
        if *self != Tls::Off && handle.tls_verify_peer()? != 1 {
            return Err(Error::Tls(
                "the URI turns off the verification of the server".to_owned(),
            ));
        }
        Ok(())
    }

    /// Checks, after connecting, that TLS is in use where it must be.
    pub(crate) fn negotiated(&self, handle: &RawHandle) -> Result<(), Error> {
        if *self != Tls::Off && handle.tls_negotiated()? != 1 {
            return Err(Error::Tls("was not negotiated".to_owned()));
        }
        Ok(())
    }
}

/// Without this file the library may fall back to the system's authorities.
fn require_authority(directory: &Path) -> Result<(), Error> {
    let file = directory.join("ca-cert.pem");
    match std::fs::metadata(&file) {
        Ok(meta) if meta.is_file() => Ok(()),
        Ok(_) => Err(Error::Tls(format!("{} is not a file", file.display()))),
        Err(error) => Err(Error::Tls(format!(
            "cannot use {}: {error}",
            file.display()
        ))),
    }
}
