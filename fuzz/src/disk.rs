//! A disk with all that an export may have: holes, contexts of its own, a bad sector.

use nbd_server::{
    Context, ErrorCode, Export, ExportError, Extents, Features, Holes, MemoryDisk, ZeroMode,
};

/// Its size in bytes.
pub const DISK_BYTES: u64 = 1 << 20;

/// The contexts that are listed, `own:0` and so on; there are more.
const LISTED: u8 = 3;

/// The disk; of its last sector nothing can be told.
pub struct Disk(MemoryDisk);

impl Disk {
    /// All of it a hole.
    pub fn new() -> Self {
        Self(MemoryDisk::new(DISK_BYTES))
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl Export for Disk {
    fn size(&self) -> u64 {
        DISK_BYTES
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ExportError> {
        refuse_the_end(offset, buffer.len())?;
        self.0.read(offset, buffer)
    }

    fn read_sparse(
        &self,
        offset: u64,
        buffer: &mut [u8],
        holes: &mut Holes,
    ) -> Result<(), ExportError> {
        refuse_the_end(offset, buffer.len())?;
        self.0.read_sparse(offset, buffer, holes)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        self.0.write(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), ExportError> {
        self.0.write_zeroes(offset, length, mode)
    }

    fn trim(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.0.trim(offset, length)
    }

    fn allocation(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Extents,
    ) -> Result<(), ExportError> {
        self.0.allocation(offset, length, extents)
    }

    fn contexts(&self) -> Vec<String> {
        (0..LISTED).map(own_context).collect()
    }

    fn context(&self, name: &str) -> Option<Box<dyn Context>> {
        let number: u8 = name.strip_prefix("own:")?.parse().ok()?;
        Some(Box::new(Stripes {
            bytes: 16 << (number % 17),
        }))
    }
}

/// The last sector is bad.
fn refuse_the_end(offset: u64, length: usize) -> Result<(), ExportError> {
    if offset + length as u64 <= DISK_BYTES - 512 {
        return Ok(());
    }
    Err(ExportError::new(ErrorCode::Io, "a bad sector"))
}

/// The name of a context that the disk has.
pub fn own_context(number: u8) -> String {
    format!("own:{number}")
}

/// Flags that change again and again.
struct Stripes {
    bytes: u64,
}

impl Context for Stripes {
    fn status(&self, offset: u64, length: u64, extents: &mut Extents) -> Result<(), ExportError> {
        refuse_the_end(offset, length as usize)?;
        let mut at = offset;
        while extents.push(self.bytes, (at / self.bytes % 2) as u32) {
            at += self.bytes;
        }
        Ok(())
    }
}
