//! Whether a request may be carried out, by what was agreed on ("Request types", "Error values").

use crate::export::{ErrorCode, ExportError};
use crate::limits::PAYLOAD_BYTES_MAX;
use crate::negotiation::Agreed;
use crate::wire::request::{Command, CommandFlags, Request};

impl Agreed {
    /// Everything about a request that can be judged without the export.
    pub(crate) fn check(&self, request: &Request) -> Result<(), ExportError> {
        let flags = match request.command {
            Command::Read if self.structured => CommandFlags::DF,
            Command::WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::BlockStatus => CommandFlags::REQ_ONE,
            Command::Unknown(_) => return invalid("unknown command"),
            _ => 0,
        };
        // FUA is valid with all commands, as existing clients send it with all.
        if request.flags.has(!(flags | CommandFlags::FUA)) {
            return invalid("flag not valid with this command");
        }
        match request.command {
            Command::Flush => return Ok(()),
            Command::Write | Command::WriteZeroes | Command::Trim if !self.features.writable => {
                return refused(ErrorCode::NotPermitted, "the export is read-only");
            }
            Command::Trim if !self.features.trim => return invalid("trim was not offered"),
            Command::BlockStatus if self.contexts.is_empty() => {
                return invalid("no metadata context was selected");
            }
            Command::BlockStatus if request.length == 0 => {
                return invalid("block status of no bytes");
            }
            Command::Read if request.length > PAYLOAD_BYTES_MAX => {
                let code = if self.structured {
                    ErrorCode::Overflow
                } else {
                    ErrorCode::Invalid
                };
                return refused(code, "read longer than the maximum payload");
            }
            _ => {}
        }
        let end = request.offset.checked_add(request.length.into());
        if end.is_none_or(|end| end > self.size_bytes) {
            let code = match request.command {
                Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
                _ => ErrorCode::Invalid,
            };
            return refused(code, "beyond the end of the export");
        }
        let block = u64::from(self.block_sizes.minimum());
        if !request.offset.is_multiple_of(block) || !u64::from(request.length).is_multiple_of(block)
        {
            return invalid("not a multiple of the minimum block size");
        }
        Ok(())
    }
}

fn invalid(message: &str) -> Result<(), ExportError> {
    refused(ErrorCode::Invalid, message)
}

fn refused(code: ErrorCode, message: &str) -> Result<(), ExportError> {
    Err(ExportError::new(code, message))
}
