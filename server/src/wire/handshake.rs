//! The first words of a connection, and the reply to `NBD_OPT_EXPORT_NAME`
//! ("Newstyle negotiation", "Handshake flags", "Client flags", "Transmission flags").

use super::{Malformed, Take};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// The magic number of newstyle negotiation, `IHAVEOPT`.
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

const FIXED_NEWSTYLE: u16 = 1 << 0;
const NO_ZEROES: u16 = 1 << 1;

/// Length of the server's greeting in bytes.
pub const GREETING_BYTES: usize = 18;

/// The server's greeting: fixed newstyle, and able to leave out the 124 zeroes.
pub fn encode_greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// Checks that `bytes` are the greeting of a fixed newstyle server.
pub fn decode_greeting(bytes: &[u8]) -> Result<(), Malformed> {
    let mut take = Take::new(bytes);
    take.magic(NBDMAGIC)?;
    take.magic(IHAVEOPT)?;
    let flags = take.u16()?;
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(Malformed::Undefined(flags.into()));
    }
    take.finish()
}

/// The client's answer to the greeting ("Client flags").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// The client speaks fixed newstyle.
    pub fixed_newstyle: bool,
    /// The client does not want the 124 zeroes after `NBD_OPT_EXPORT_NAME`.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Length in bytes.
    pub const BYTES: usize = 4;

    /// Refuses unknown flags: the server must then drop the connection.
    pub fn decode(bytes: [u8; Self::BYTES]) -> Result<Self, Malformed> {
        let flags = u32::from_be_bytes(bytes);
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(Malformed::Undefined(flags.into()));
        }
        Ok(ClientFlags {
            fixed_newstyle: flags & u32::from(FIXED_NEWSTYLE) != 0,
            no_zeroes: flags & u32::from(NO_ZEROES) != 0,
        })
    }

    /// The flags as sent.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let fixed = u32::from(self.fixed_newstyle) * u32::from(FIXED_NEWSTYLE);
        let zeroes = u32::from(self.no_zeroes) * u32::from(NO_ZEROES);
        (fixed | zeroes).to_be_bytes()
    }
}

/// What an export can do, as the client is told ("Transmission flags").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// `NBD_FLAG_HAS_FLAGS`, always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// `NBD_FLAG_READ_ONLY`
    pub const READ_ONLY: u16 = 1 << 1;
    /// `NBD_FLAG_SEND_FLUSH`
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// `NBD_FLAG_SEND_FUA`
    pub const SEND_FUA: u16 = 1 << 3;
    /// `NBD_FLAG_ROTATIONAL`
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `NBD_FLAG_SEND_TRIM`
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `NBD_FLAG_SEND_WRITE_ZEROES`
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// `NBD_FLAG_SEND_DF`
    pub const SEND_DF: u16 = 1 << 7;
    /// `NBD_FLAG_CAN_MULTI_CONN`
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `NBD_FLAG_SEND_CACHE`
    pub const SEND_CACHE: u16 = 1 << 10;
    /// `NBD_FLAG_SEND_FAST_ZERO`
    pub const SEND_FAST_ZERO: u16 = 1 << 11;

    /// Whether all flags of `mask` are set.
    pub fn contains(self, mask: u16) -> bool {
        self.0 & mask == mask
    }
}

/// The reply to `NBD_OPT_EXPORT_NAME`: 10 bytes, and 124 zeroes unless both sides agreed to
/// leave them out.
pub fn encode_export_name_reply(
    size_bytes: u64,
    flags: TransmissionFlags,
    client: ClientFlags,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(134);
    bytes.extend_from_slice(&size_bytes.to_be_bytes());
    bytes.extend_from_slice(&flags.0.to_be_bytes());
    if !client.no_zeroes {
        bytes.resize(134, 0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_greeting_is_the_one_of_the_protocol_document() {
        assert_eq!(&encode_greeting(), b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(decode_greeting(&encode_greeting()), Ok(()));
    }

    #[test]
    fn unknown_client_flags_are_refused() {
        assert_eq!(
            ClientFlags::decode([0, 0, 0, 7]),
            Err(Malformed::Undefined(7))
        );
    }

    #[test]
    fn an_old_client_gets_its_124_zeroes_after_the_export_name() {
        let flags = TransmissionFlags(0x0103);
        let mut client = ClientFlags {
            fixed_newstyle: true,
            no_zeroes: false,
        };
        let long = encode_export_name_reply(1 << 40, flags, client);
        assert_eq!(long.len(), 134);
        assert_eq!(long[..10], [0, 0, 1, 0, 0, 0, 0, 0, 1, 3]);
        assert!(long[10..].iter().all(|&byte| byte == 0));
        client.no_zeroes = true;
        let short = encode_export_name_reply(1 << 40, flags, client);
        assert_eq!(short, long[..10]);
    }

    proptest! {
        #[test]
        fn client_flags_survive_the_round_trip(fixed_newstyle: bool, no_zeroes: bool) {
            let flags = ClientFlags { fixed_newstyle, no_zeroes };
            prop_assert_eq!(ClientFlags::decode(flags.encode()), Ok(flags));
        }

        #[test]
        fn arbitrary_bytes_are_no_trouble(bytes: Vec<u8>, flags: [u8; 4]) {
            let _ = decode_greeting(&bytes);
            let _ = ClientFlags::decode(flags);
        }
    }
}
