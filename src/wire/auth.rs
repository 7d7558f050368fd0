//! A shared secret, and the proof of knowing it without showing it.
//!
//! Each end sends a fresh random nonce in its half of the handshake, then HMAC-SHA256 (RFC 2104)
//! of everything said so far, under the secret. The nonces make a recorded proof worthless, the
//! transcript binds it to the ranks and limits that were agreed on, and the [`Role`] makes one end's
//! proof differ from the other's, so that it can't be sent back to its author.
//!
//! This proves who the peer is when the connection begins. It does not encrypt, and does not protect
//! what follows from somebody who can alter packets in between.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, Result};

/// The length of a proof, in bytes.
pub const PROOF_BYTES: usize = 32;

/// What both ends must know. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Any bytes but none at all. 32 random ones are as strong as the proof itself.
    ///
    /// # Errors
    /// [`Error::Misuse`] if it is empty: everybody knows the empty secret.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Err(Error::Misuse("the secret is empty".into()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Whose proof it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The end that opened the connection.
    Connector,
    /// The end that accepted it.
    Listener,
}

impl Role {
    /// Part of the protocol, as is everything that goes into the proof.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Connector => b"kvpipe 1 connector",
            Self::Listener => b"kvpipe 1 listener",
        }
    }
}

/// The proof that `role` knows `secret` and has seen `transcript`: HMAC-SHA256 over the role's label
/// and each part of the transcript, each behind its length as u64 LE, so that moving bytes from one
/// part to the next changes the proof.
#[must_use]
pub fn proof(secret: &Secret, role: Role, transcript: &[&[u8]]) -> [u8; PROOF_BYTES] {
    mac(secret, role, transcript).finalize().into_bytes().into()
}

/// Whether `claimed` is that proof. Takes the same time wherever the first difference is.
#[must_use]
pub fn verify_proof(secret: &Secret, role: Role, transcript: &[&[u8]], claimed: &[u8; PROOF_BYTES]) -> bool {
    mac(secret, role, transcript).verify(&(*claimed).into()).is_ok()
}

fn mac(secret: &Secret, role: Role, transcript: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = keyed(&secret.0);
    for part in std::iter::once(role.label()).chain(transcript.iter().copied()) {
        mac.update(&(part.len() as u64).to_le_bytes());
        mac.update(part);
    }
    mac
}

fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    match Hmac::new_from_slice(secret) {
        Ok(mac) => mac,
        // The trait allows it, for ciphers with a key of fixed size; RFC 2104 takes any length.
        Err(error) => unreachable!("hmac refused a key of {} bytes: {error}", secret.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(bytes: &[u8]) -> Secret {
        Secret::new(bytes).unwrap()
    }

    /// RFC 4231, section 4.3 (a key shorter than the output) and 4.7 (a key longer than a block).
    #[test]
    fn the_mac_is_hmac_sha256_of_rfc_4231() {
        let tag =
            |key: &[u8], data: &[u8]| hex::encode(keyed(key).chain_update(data).finalize().into_bytes());
        assert_eq!(
            tag(b"Jefe", b"what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            tag(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    /// Computed with Python's `hmac` over `<u64 length><part>` for the label and both parts.
    #[test]
    fn the_proof_of_version_1_is_frozen() {
        let parts: [&[u8]; 2] = [b"hello", b"welcome"];
        let of = |role| hex::encode(proof(&secret(b"open sesame"), role, &parts));
        assert_eq!(of(Role::Connector), "4c9ea06dcc709386190ddd9947a981c4156b608e47ac2e47d71baa98661a156b");
        assert_eq!(of(Role::Listener), "e769ab162ad745442ee4127e792f619d4b31c3f340b9dda48a1d6d52bc017179");
    }

    #[test]
    fn a_proof_verifies() {
        let claimed = proof(&secret(b"k"), Role::Listener, &[b"a", b"b"]);
        assert!(verify_proof(&secret(b"k"), Role::Listener, &[b"a", b"b"], &claimed));
    }

    #[test]
    fn a_proof_with_any_bit_flipped_is_refused() {
        let right = proof(&secret(b"k"), Role::Listener, &[b"a"]);
        for bit in 0..PROOF_BYTES * 8 {
            let mut wrong = right;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify_proof(&secret(b"k"), Role::Listener, &[b"a"], &wrong), "bit {bit}");
        }
    }

    #[test]
    fn another_secret_is_refused() {
        let claimed = proof(&secret(b"k"), Role::Connector, &[b"a"]);
        assert!(!verify_proof(&secret(b"K"), Role::Connector, &[b"a"], &claimed));
    }

    #[test]
    fn a_proof_sent_back_to_its_author_is_refused() {
        let listeners = proof(&secret(b"k"), Role::Listener, &[b"a"]);
        assert!(!verify_proof(&secret(b"k"), Role::Connector, &[b"a"], &listeners));
    }

    #[test]
    fn bytes_moved_between_parts_change_the_proof() {
        let of = |transcript: &[&[u8]]| proof(&secret(b"k"), Role::Connector, transcript);
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"abc"]), of(&[b"abc", b""]));
    }

    #[test]
    fn an_empty_secret_is_refused() {
        assert_eq!(Secret::new([]).unwrap_err().to_string(), "the secret is empty");
    }

    #[test]
    fn debug_shows_nothing_of_a_secret() {
        assert_eq!(format!("{:?}", secret(b"hunter2")), "Secret(..)");
    }
}
