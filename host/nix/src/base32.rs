//! Nix's base32: its own alphabet, digits in reverse order, no padding. Start at [`encode`] and [`decode`].
//!
//! The last digit comes first in significance: the text is the number that the bytes form in little-endian
//! order, written from its most significant five bits. The format is defined by Nix's `libutil/hash.cc`.

/// The digits in order of their value. The letters e, o, t and u are left out.
pub const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

const NOT_A_DIGIT: u8 = 0xff;

/// Value of each byte as a digit, or [`NOT_A_DIGIT`].
const VALUES: [u8; 256] = {
    let mut values = [NOT_A_DIGIT; 256];
    let mut value = 0;
    while value < ALPHABET.len() {
        values[ALPHABET[value] as usize] = value as u8;
        value += 1;
    }
    values
};

/// Why a text is not the base32 form of any bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Base32Error {
    /// No number of bytes is written with so many digits.
    #[error("{0} digits are no length that Nix base32 can have")]
    Length(usize),
    /// A byte outside of the alphabet.
    #[error("byte {byte:#04x} at offset {offset} is no Nix base32 digit (0-9 and a-z without e, o, t, u)")]
    Digit {
        /// The byte found.
        byte: u8,
        /// Where it stands, in bytes from the start.
        offset: usize,
    },
    /// The first digit has bits that belong to no byte, so that two texts would mean the same bytes.
    #[error("the first Nix base32 digit has bits beyond the last byte")]
    SuperfluousBits,
}

/// Number of digits that `byte_count` bytes are written with.
pub const fn encoded_len(byte_count: usize) -> usize {
    (byte_count * 8).div_ceil(5)
}

/// Whether `byte` is one of the 32 digits.
pub const fn is_digit(byte: u8) -> bool {
    VALUES[byte as usize] != NOT_A_DIGIT
}

/// Writes `bytes` in Nix base32.
pub fn encode(bytes: &[u8]) -> String {
    let digit_count = encoded_len(bytes.len());
    let mut text = String::with_capacity(digit_count);
    for digit_index in (0..digit_count).rev() {
        let bit = digit_index * 5;
        let (byte, shift) = (bit / 8, bit % 8);
        let low = u16::from(bytes[byte]);
        let high = bytes.get(byte + 1).map_or(0, |next| u16::from(*next));
        let value = ((high << 8 | low) >> shift) & 0x1f;
        text.push(char::from(ALPHABET[usize::from(value)]));
    }
    text
}

/// Reads Nix base32. Every sequence of bytes has exactly one text that is accepted.
pub fn decode(text: &[u8]) -> Result<Vec<u8>, Base32Error> {
    let mut bytes = vec![0; text.len() * 5 / 8];
    decode_into(text, &mut bytes)?;
    Ok(bytes)
}

/// Reads Nix base32 into a buffer of exactly the right size, without allocating.
pub fn decode_into(text: &[u8], bytes: &mut [u8]) -> Result<(), Base32Error> {
    if encoded_len(bytes.len()) != text.len() {
        return Err(Base32Error::Length(text.len()));
    }
    bytes.fill(0);
    for (digit_index, (offset, byte)) in text.iter().enumerate().rev().enumerate() {
        let value = VALUES[usize::from(*byte)];
        if value == NOT_A_DIGIT {
            return Err(Base32Error::Digit { byte: *byte, offset });
        }
        let bit = digit_index * 5;
        let (index, shift) = (bit / 8, bit % 8);
        let spread = u16::from(value) << shift;
        bytes[index] |= spread as u8;
        let carry = (spread >> 8) as u8;
        match bytes.get_mut(index + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return Err(Base32Error::SuperfluousBits),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // `nix hash to-base32 --type sha256` of the hash of nothing; also proven against the tool in tests/.
        let empty = [
            0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae,
            0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
        ];
        let text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        assert_eq!(encode(&empty), text);
        assert_eq!(decode(text.as_bytes()), Ok(empty.to_vec()));
        assert_eq!(encode(&[]), "");
        assert_eq!(decode(b""), Ok(vec![]));
        assert_eq!(encode(&[0x1f]), "0z");
    }

    #[test]
    fn refusals() {
        // 2 digits hold 10 bits: the two highest of the first digit belong to no byte.
        assert_eq!(decode(b"7z"), Ok(vec![0xff]));
        assert_eq!(decode(b"8z"), Err(Base32Error::SuperfluousBits));
        assert_eq!(decode(b"0e"), Err(Base32Error::Digit { byte: b'e', offset: 1 }));
        assert_eq!(decode(b"Z0"), Err(Base32Error::Digit { byte: b'Z', offset: 0 }));
        assert_eq!(decode("ö".as_bytes()), Err(Base32Error::Digit { byte: 0xb6, offset: 1 }));
        for length in [1, 3, 6, 9, 11] {
            assert_eq!(decode(&vec![b'0'; length]), Err(Base32Error::Length(length)));
        }
    }

    proptest! {
        #[test]
        fn bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes()), Ok(bytes));
        }

        #[test]
        fn accepted_text_is_canonical(text in "[0-9a-df-np-sv-z]{0,60}") {
            if let Ok(bytes) = decode(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }

        #[test]
        fn any_bytes_are_answered(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&text);
        }
    }
}
