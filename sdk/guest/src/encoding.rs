//! Bytes as text.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Reads with and without `=` at the end, as forges and tokens write both.
const READER: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, READER);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, READER.with_encode_padding(false));

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// Bytes of hexadecimal text of either case; none when it is none.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    hex::decode(text).ok()
}

/// Base64 with padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

/// Bytes of base64 text, padded or not; none when it is none.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// Base64 for URLs, without padding (RFC 4648, section 5).
pub fn base64url(bytes: &[u8]) -> String {
    BASE64_URL.encode(bytes)
}

/// Bytes of base64 text for URLs, padded or not; none when it is none.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    BASE64_URL.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        assert_eq!(hex(&[0, 0xaf]), "00af");
        assert_eq!(from_hex("00AF"), Some(vec![0, 0xaf]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
        assert_eq!(from_base64("+/8"), from_base64url("-_8="));
        assert_eq!(from_base64("-_8"), None);
    }
}
