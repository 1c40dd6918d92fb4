//! Serves a raw disk image until SIGTERM or SIGINT, and then finishes what was asked of it:
//!
//! ```text
//! serve-file [--write] [--tls CERTIFICATE KEY [AUTHORITY]] FILE [SOCKET|ADDRESS:PORT]
//! ```
//!
//! With a certificate TLS is required, with an authority also of clients. Without an address it
//! serves on the sockets that systemd has passed to it:
//!
//! ```text
//! nbdinfo -- [ serve-file disk.img ]
//! systemd-socket-activate -l 10809 serve-file disk.img
//! ```

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nbd_server::{
    Export, ExportError, ExportMap, Extents, Features, HOLE, Listener, PassedSocket, Server, Tls,
    TlsMode, ZERO, ZeroMode,
};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A raw image. All reads and writes carry their own position, so the file's is free for finding
/// out where its data are.
struct RawFile {
    file: File,
    size: u64,
    description: String,
    writable: bool,
}

impl Export for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn description(&self) -> Option<String> {
        Some(self.description.clone())
    }

    fn features(&self) -> Features {
        Features {
            writable: self.writable,
            trim: self.writable,
            // All connections use one file, and to sync it is to sync what came by all of them.
            multi_conn: true,
            ..Features::default()
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        Ok(self.file.read_exact_at(buffer, offset)?)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        Ok(self.file.write_all_at(data, offset)?)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), ExportError> {
        let how = if mode.keep_allocated {
            FallocateFlags::ZERO_RANGE
        } else {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        };
        match fallocate(&self.file, how, offset, length) {
            Err(Errno::OPNOTSUPP) if !mode.fast_only => {
                let zeroes = vec![0; 64 << 10];
                for at in (0..length).step_by(zeroes.len()) {
                    let piece = (length - at).min(zeroes.len() as u64) as usize;
                    self.file.write_all_at(&zeroes[..piece], offset + at)?;
                }
                Ok(())
            }
            result => Ok(result.map_err(std::io::Error::from)?),
        }
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, offset, length) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result.map_err(std::io::Error::from)?),
        }
    }

    fn flush(&self) -> Result<(), ExportError> {
        Ok(self.file.sync_data()?)
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => end,
                result => result.map_err(std::io::Error::from)?.min(end),
            };
            extents.push(data - at, HOLE | ZERO);
            if data == end {
                break;
            }
            let hole = seek(&self.file, SeekFrom::Hole(data)).map_err(std::io::Error::from)?;
            if !extents.push(hole - data, 0) {
                break;
            }
            at = hole;
        }
        Ok(())
    }
}

/// What the command line asks for.
struct Arguments {
    file: String,
    address: Option<String>,
    writable: bool,
    tls: TlsMode,
}

impl Arguments {
    fn parse(mut given: Vec<String>) -> Result<Self, Box<dyn Error>> {
        let mut files = Vec::new();
        if let Some(at) = given.iter().position(|argument| argument == "--tls") {
            let mut rest = given.split_off(at);
            let operands = rest.iter().rposition(|file| file.ends_with(".pem"));
            let operands = rest.split_off(operands.ok_or(USAGE)? + 1);
            files = rest.split_off(1);
            given.extend(operands);
        }
        let tls = match &files[..] {
            [] => TlsMode::Off,
            [certificate, key] => TlsMode::Required(Tls::new(certificate, key)?),
            [certificate, key, authority] => {
                TlsMode::Required(Tls::verifying_clients(certificate, key, authority)?)
            }
            _ => return Err(USAGE.into()),
        };
        let writable = given.first().is_some_and(|argument| argument == "--write");
        let mut operands = given.into_iter().skip(writable.into());
        let arguments = Arguments {
            file: operands.next().ok_or(USAGE)?,
            address: operands.next(),
            writable,
            tls,
        };
        match operands.next() {
            None => Ok(arguments),
            Some(_) => Err(USAGE.into()),
        }
    }

    fn listeners(&self) -> Result<Vec<Listener>, Box<dyn Error>> {
        let tls = self.tls.clone();
        let Some(address) = &self.address else {
            let passed = PassedSocket::take_all()?;
            if passed.is_empty() {
                return Err("no address was given and no socket was passed".into());
            }
            let listen = |socket: PassedSocket| Ok(socket.listen(tls.clone())?);
            return passed.into_iter().map(listen).collect();
        };
        let listener = match (address.parse(), tls) {
            (Ok(address), TlsMode::Required(tls)) => Listener::tcp_with_tls(address, tls)?,
            (Ok(address), tls) => Listener::tcp(address)?.with_tls(tls)?,
            (Err(_), tls) => Listener::unix(address)?.with_tls(tls)?,
        };
        Ok(vec![listener])
    }
}

const USAGE: &str = "usage: serve-file [--write] [--tls CERTIFICATE.pem KEY.pem [AUTHORITY.pem]] \
                     FILE [SOCKET|ADDRESS:PORT]";

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1).collect())?;
    // First of all, as it changes the environment.
    let listeners = arguments.listeners()?;
    let file = OpenOptions::new()
        .read(true)
        .write(arguments.writable)
        .open(&arguments.file)?;
    let disk = RawFile {
        size: file.metadata()?.len(),
        description: format!("raw image {}", arguments.file),
        file,
        writable: arguments.writable,
    };
    let exports = ExportMap::new().with("", Arc::new(disk));
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let server = Server::new(Arc::new(exports))
        .with_observer(|event| eprintln!("{event:?}"))
        .start(listeners)?;
    signals.forever().next();
    server.stop(Duration::from_secs(10))?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve-file: {error}");
            ExitCode::FAILURE
        }
    }
}
