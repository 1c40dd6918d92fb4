//! What a client asks for in the transmission phase ("Request message", "Request types",
//! "Command flags").

use super::{Malformed, Take};

const MAGIC: u32 = 0x2560_9513;

/// The fixed part of a request; only a write is followed by data, `length` bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags of the command.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// The client's name for this request, repeated in each reply to it.
    pub cookie: u64,
    /// Where, in bytes from the start of the export.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`
    Read,
    /// `NBD_CMD_WRITE`
    Write,
    /// `NBD_CMD_DISC`: no reply.
    Disconnect,
    /// `NBD_CMD_FLUSH`
    Flush,
    /// `NBD_CMD_TRIM`
    Trim,
    /// `NBD_CMD_CACHE`
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`
    BlockStatus,
    /// Any other number: to be answered with `NBD_EINVAL`.
    Unknown(u16),
}

/// Flags of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// `NBD_CMD_FLAG_FUA`: answer when it is on stable storage.
    pub const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`: zeroes must stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `NBD_CMD_FLAG_DF`: one content chunk at most.
    pub const DF: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_REQ_ONE`: one extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail unless zeroing is faster than writing.
    pub const FAST_ZERO: u16 = 1 << 4;

    /// Whether any flag of `mask` is set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask != 0
    }
}

impl Request {
    /// Length in bytes.
    pub const BYTES: usize = 28;

    /// Checks the magic number only: what the command means depends on the export.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, Malformed> {
        let mut take = Take::new(bytes);
        match take.u32()? {
            MAGIC => {}
            found => return Err(Malformed::Magic(found.into())),
        }
        Ok(Request {
            flags: CommandFlags(take.u16()?),
            command: Command::from(take.u16()?),
            cookie: take.u64()?,
            offset: take.u64()?,
            length: take.u32()?,
        })
    }

    /// The request as a client sends it.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::from(self.command).to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

impl From<Command> for u16 {
    fn from(command: Command) -> u16 {
        match command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_survive_the_round_trip(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
        ) {
            let request = Request {
                flags: CommandFlags(flags),
                command: Command::from(command),
                cookie,
                offset,
                length,
            };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn bytes_without_the_magic_number_are_refused(bytes: [u8; 28]) {
            prop_assume!(bytes[..4] != MAGIC.to_be_bytes());
            prop_assert!(Request::decode(&bytes).is_err());
        }
    }
}
