//! Serves a raw disk image: `serve-file [--write] FILE SOCKET`, or `HOST:PORT` with a loopback
//! address in place of a socket. Ends when its standard input does, finishing what was asked.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use nbd_server::{
    Export, ExportError, ExportMap, Extents, Features, HOLE, Listener, Server, ZERO, ZeroMode,
};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

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

fn run(path: &str, address: &str, writable: bool) -> Result<(), Box<dyn std::error::Error>> {
    let file = OpenOptions::new().read(true).write(writable).open(path)?;
    let disk = RawFile {
        size: file.metadata()?.len(),
        description: format!("raw image {path}"),
        file,
        writable,
    };
    let listener = match address.parse() {
        Ok(address) => Listener::tcp(address)?,
        Err(_) => Listener::unix(address)?,
    };
    let exports = ExportMap::new().with("", Arc::new(disk));
    let server = Server::new(Arc::new(exports))
        .with_observer(|event| eprintln!("{event:?}"))
        .start(vec![listener])?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.stop(Duration::from_secs(10))?;
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["--write", path, address] => run(path, address, true),
        [path, address] => run(path, address, false),
        _ => Err("usage: serve-file [--write] FILE SOCKET|HOST:PORT".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve-file: {error}");
            ExitCode::FAILURE
        }
    }
}
