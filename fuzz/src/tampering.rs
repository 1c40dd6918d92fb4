//! What is done to a valid object before it is decoded.

use arbitrary::Arbitrary;

/// Changes to the bytes of an object, one after the other. Places are taken modulo its length.
#[derive(Arbitrary, Debug)]
pub struct Tampering(Vec<Edit>);

#[derive(Arbitrary, Debug)]
enum Edit {
    /// Other bytes in place of those there.
    Overwrite { at: u32, bytes: Vec<u8> },
    /// A number of four bytes, as lengths and offsets are.
    Number { at: u32, value: u32 },
    /// A number at one of the first 256 bytes, where headers are.
    HeaderNumber { at: u8, value: u16 },
    /// Some bits the other way round.
    Flip { at: u32, bits: u8 },
    /// Bytes that were not there.
    Insert { at: u32, bytes: Vec<u8> },
    /// The end is missing.
    Cut { at: u32 },
    /// A part comes twice.
    Repeat { at: u32, len: u16 },
}

impl Tampering {
    /// `object` after all changes.
    pub fn of(&self, mut object: Vec<u8>) -> Vec<u8> {
        for edit in &self.0 {
            edit.apply(&mut object);
        }
        object
    }
}

impl Edit {
    fn apply(&self, object: &mut Vec<u8>) {
        let places = object.len() + 1;
        let place = |at: u32| at as usize % places;
        match self {
            Self::Overwrite { at, bytes } => overwrite(object, place(*at), bytes),
            Self::Number { at, value } => {
                overwrite(object, place(*at), &value.to_le_bytes());
            }
            Self::HeaderNumber { at, value } => {
                overwrite(object, place((*at).into()), &value.to_le_bytes());
            }
            Self::Flip { at, bits } => {
                let at = place(*at);
                if let Some(byte) = object.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Self::Insert { at, bytes } => {
                let at = place(*at);
                object.splice(at..at, bytes.iter().copied());
            }
            Self::Cut { at } => object.truncate(place(*at)),
            Self::Repeat { at, len } => {
                let at = place(*at);
                let end = (at + usize::from(*len)).min(object.len());
                let again = object[at..end].to_vec();
                object.splice(at..at, again);
            }
        }
    }
}

/// What does not fit any more is left out.
fn overwrite(object: &mut [u8], at: usize, bytes: &[u8]) {
    for (place, byte) in object[at..].iter_mut().zip(bytes) {
        *place = *byte;
    }
}
