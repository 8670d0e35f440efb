//! IO tokens: what they say, how they are signed, and the keys derived from them (ARCHITECTURE section 8).
//!
//! ```text
//! token      = canonical fields, then HMAC-SHA256(secret[key id], "pflex token v1" || fields)
//! token key  = HMAC-SHA256(secret[key id], "pflex token key v1" || fields)     known to MDM, SDS and the token's SDC
//! session key= HMAC-SHA256(token key, "pflex session v1" || nonce || generation || device)
//! request MAC= first 16 bytes of HMAC-SHA256(session key, header bytes 0..24 || body without the MAC)
//! ```
//!
//! An SDC holds tokens and token keys, never a secret. The domain strings keep one kind of HMAC from passing as another.

use std::fmt;

use ring::hmac;

use crate::{
    codec::{CodecError, Reader, Wire},
    frame::MAC_HEADER_SIZE,
    ids::{
        ByteOffset, ClusterId, DeviceId, Generation, Incarnation, KeyId, LogTime, OperationId, ProcessId, SdcId,
        TokenId, VolumeEpoch, VolumeId,
    },
    wire_enum, wire_fields,
};

/// Of a token without a plan.
const TOKEN_VERSION: u8 = 1;
/// Of a token with one, which stands at its end.
const PLANNED_TOKEN_VERSION: u8 = 2;
const TOKEN_DOMAIN: &[u8] = b"pflex token v1";
const TOKEN_KEY_DOMAIN: &[u8] = b"pflex token key v1";
const SESSION_DOMAIN: &[u8] = b"pflex session v1";

/// Whether requests are authorised at all. Only a build with the feature `bench-no-auth` does without, to measure what it
/// costs (`make bench-auth`): in such a build anybody may read and write anything.
pub const IS_CHECKED: bool = !cfg!(feature = "bench-no-auth");

/// Bytes of a signature or key.
pub const KEY_SIZE: usize = 32;
/// Bytes of a request's MAC.
pub const MAC_SIZE: usize = 16;

/// What a token allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rights {
    /// Reads only.
    Read,
    /// Reads and writes.
    ReadWrite,
}
wire_enum!(Rights { Read = 1, ReadWrite = 2 });

/// How often a token may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenMode {
    /// Any number of IOs until it expires.
    Lease,
    /// One with a plan is good for that; one without opens sessions, and each IO in them brings one with a plan.
    PerIo,
}
wire_enum!(TokenMode { Lease = 1, PerIo = 2 });

/// What a token of per-io mode is for: one operation, at one device, in the life it was in when the token was issued.
///
/// A device remembers which tokens it has seen, and its incarnation rises durably with each start (S2), so none is used
/// twice, not even after a crash (S21). A write's operation also executes once wherever it is sent again (S7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The device that may execute it.
    pub device: DeviceId,
    /// In this life only.
    pub incarnation: Incarnation,
    /// The write's id (S7); 0 for what reads.
    pub operation: OperationId,
}
wire_fields!(Plan { device, incarnation, operation });

/// What a token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// The cluster that issued it.
    pub cluster: ClusterId,
    /// Which secret signed it.
    pub key: KeyId,
    /// Its own id, in the `io_tokens` table.
    pub id: TokenId,
    /// The only client that may use it.
    pub sdc: SdcId,
    /// The only process of that client that may.
    pub process: ProcessId,
    /// The volume.
    pub volume: VolumeId,
    /// What it allows.
    pub rights: Rights,
    /// First byte of the volume it covers.
    pub from: ByteOffset,
    /// First byte beyond.
    pub to: ByteOffset,
    /// Void when the volume's epoch is higher (S20).
    pub volume_epoch: VolumeEpoch,
    /// Log time of issue.
    pub issued: LogTime,
    /// Void from this log time on.
    pub expires: LogTime,
    /// How often it may be used.
    pub mode: TokenMode,
    /// The one operation that it is for. Its range is then `from..to` exactly; `Read` is one read or question about
    /// allocation, `ReadWrite` one write.
    pub plan: Option<Plan>,
}

impl Wire for Token {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(if self.plan.is_some() { PLANNED_TOKEN_VERSION } else { TOKEN_VERSION });
        self.cluster.encode(out);
        self.key.encode(out);
        self.id.encode(out);
        self.sdc.encode(out);
        self.process.encode(out);
        self.volume.encode(out);
        self.rights.encode(out);
        self.from.0.encode(out);
        self.to.0.encode(out);
        self.volume_epoch.encode(out);
        self.issued.encode(out);
        self.expires.encode(out);
        self.mode.encode(out);
        if let Some(plan) = &self.plan {
            plan.encode(out);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.get::<u8>()? {
            version @ (TOKEN_VERSION | PLANNED_TOKEN_VERSION) => Ok(Self {
                cluster: reader.get()?,
                key: reader.get()?,
                id: reader.get()?,
                sdc: reader.get()?,
                process: reader.get()?,
                volume: reader.get()?,
                rights: reader.get()?,
                from: ByteOffset(reader.get()?),
                to: ByteOffset(reader.get()?),
                volume_epoch: reader.get()?,
                issued: reader.get()?,
                expires: reader.get()?,
                mode: reader.get()?,
                plan: (version == PLANNED_TOKEN_VERSION).then(|| reader.get()).transpose()?,
            }),
            other => Err(CodecError::BadTag { what: "token version", value: other.into() }),
        }
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Does not decode.
    #[error("malformed token")]
    Malformed(#[from] CodecError),
    /// Signed with a secret this side does not have: fetch the keys and try again (S21).
    #[error("token is signed with unknown key {0}")]
    UnknownKey(KeyId),
    /// The signature does not match: forged, altered, or of another cluster's secret.
    #[error("token signature does not match")]
    BadSignature,
}

/// The cluster's secret of one key id. Held by MDMs and SDSs only; never printed (I7).
#[derive(Clone)]
pub struct Secret {
    id: KeyId,
    key: hmac::Key,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {{ id: {} }}", self.id)
    }
}

impl Secret {
    /// From the 32 bytes that the bootstrap made.
    pub fn new(id: KeyId, bytes: &[u8; KEY_SIZE]) -> Self {
        Self { id, key: hmac::Key::new(hmac::HMAC_SHA256, bytes) }
    }

    /// Its id.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Signs a token: its encoding with the signature appended, and the key that its holder derives session keys from.
    ///
    /// # Panics
    /// When the token names another key id, which is a bug of the caller.
    pub fn sign(&self, token: &Token) -> (Vec<u8>, TokenKey) {
        assert_eq!(token.key, self.id, "a token names the secret that signs it");
        let mut bytes = token.to_bytes();
        let key = self.token_key(&bytes);
        let signature = self.signature(&bytes);
        bytes.extend_from_slice(signature.as_ref());
        (bytes, key)
    }

    fn signature(&self, fields: &[u8]) -> hmac::Tag {
        digest(&self.key, &[TOKEN_DOMAIN, fields])
    }

    fn token_key(&self, fields: &[u8]) -> TokenKey {
        let tag = digest(&self.key, &[TOKEN_KEY_DOMAIN, fields]);
        TokenKey(tag.as_ref().try_into().expect("HMAC-SHA256 is 32 bytes"))
    }
}

/// Verifies a signed token with the secret of its key id among `secrets`.
///
/// Signature only: expiry, rights, range and epoch are the caller's, at admission and again at ordering (S20).
///
/// # Errors
/// See [`TokenError`].
pub fn verify(signed: &[u8], secrets: &[Secret]) -> Result<(Token, TokenKey), TokenError> {
    let mut reader = Reader::new(signed);
    let token: Token = reader.get()?;
    let (fields, signature) = signed.split_at(signed.len() - reader.remaining());
    if signature.len() != KEY_SIZE {
        return Err(TokenError::BadSignature);
    }
    let secret = secrets.iter().find(|secret| secret.id == token.key).ok_or(TokenError::UnknownKey(token.key))?;
    let mut context = hmac::Context::with_key(&secret.key);
    context.update(TOKEN_DOMAIN);
    context.update(fields);
    let computed = context.sign();
    if !equal_in_constant_time(computed.as_ref(), signature) {
        return Err(TokenError::BadSignature);
    }
    Ok((token, secret.token_key(fields)))
}

/// Derived from a token and its secret; whoever holds it can open sessions with that token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenKey([u8; KEY_SIZE]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey { .. }")
    }
}

impl TokenKey {
    /// As the MDM sent it.
    pub const fn from_bytes(bytes: [u8; KEY_SIZE]) -> Self {
        Self(bytes)
    }

    /// For the MDM's answer.
    pub const fn as_bytes(&self) -> &[u8; KEY_SIZE] {
        &self.0
    }

    /// The key of one session: the nonce is the SDS's, so a captured request fits no other session.
    pub fn session_key(&self, nonce: &[u8; 16], generation: &Generation, device: DeviceId) -> SessionKey {
        let mut binding = Vec::with_capacity(64);
        generation.encode(&mut binding);
        device.encode(&mut binding);
        let tag = digest(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), &[SESSION_DOMAIN, nonce, &binding]);
        SessionKey(hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref()))
    }
}

/// Makes and checks the MACs of one session's requests.
#[derive(Clone)]
pub struct SessionKey(hmac::Key);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey { .. }")
    }
}

impl SessionKey {
    /// The MAC of a request: `header` as `frame::encode_frame_with` or `frame::mac_header` gives it, `body` without MAC.
    pub fn mac(&self, header: &[u8; MAC_HEADER_SIZE], body: &[u8]) -> [u8; MAC_SIZE] {
        let tag = digest(&self.0, &[header, body]);
        tag.as_ref()[..MAC_SIZE].try_into().expect("16 of 32 bytes")
    }

    /// Appends `message` and its MAC to `out`; for `frame::encode_frame_with`.
    pub fn seal(&self, header: &[u8; MAC_HEADER_SIZE], message: &impl Wire, out: &mut Vec<u8>) {
        let start = out.len();
        message.encode(out);
        let mac = if IS_CHECKED { self.mac(header, &out[start..]) } else { [0; MAC_SIZE] };
        out.extend_from_slice(&mac);
    }

    /// Whether the MAC at the end of `body` is right.
    pub fn opens(&self, header: &[u8; MAC_HEADER_SIZE], body: &[u8]) -> bool {
        body.split_last_chunk::<MAC_SIZE>()
            .is_some_and(|(message, mac)| !IS_CHECKED || equal_in_constant_time(&self.mac(header, message), mac))
    }
}

/// A sealed body without its MAC, to find the session before the MAC can be checked.
///
/// # Errors
/// [`CodecError::Truncated`] if there is not even a MAC, or what the message's decoding finds.
pub fn unsealed<T: Wire>(body: &[u8]) -> Result<T, CodecError> {
    let missing = MAC_SIZE.saturating_sub(body.len());
    let (message, _) = body.split_last_chunk::<MAC_SIZE>().ok_or(CodecError::Truncated { at: body.len(), missing })?;
    T::from_bytes(message)
}

fn digest(key: &hmac::Key, parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    context.sign()
}

/// Takes the same time wherever the first difference is, so that timing tells a forger nothing.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            cluster: ClusterId::from_bytes([1; 16]),
            key: KeyId(1),
            id: TokenId(9),
            sdc: SdcId(2),
            process: ProcessId::from_bytes([2; 16]),
            volume: VolumeId(3),
            rights: Rights::ReadWrite,
            from: ByteOffset(0),
            to: ByteOffset(1 << 30),
            volume_epoch: VolumeEpoch(1),
            issued: LogTime(1_000),
            expires: LogTime(61_000),
            mode: TokenMode::Lease,
            plan: None,
        }
    }

    fn secret(id: u32, byte: u8) -> Secret {
        Secret::new(KeyId(id), &[byte; 32])
    }

    #[test]
    fn a_signed_token_verifies_and_both_sides_derive_the_same_key() {
        let (signed, key) = secret(1, 7).sign(&token());
        assert_eq!(verify(&signed, &[secret(1, 7)]), Ok((token(), key)));
    }

    #[test]
    fn every_altered_bit_is_refused() {
        let plan = Plan { device: DeviceId(3), incarnation: Incarnation(2), operation: OperationId(9) };
        for token in [token(), Token { plan: Some(plan), ..token() }] {
            let (signed, key) = secret(1, 7).sign(&token);
            assert_eq!(verify(&signed, &[secret(1, 7)]), Ok((token, key)));
            for bit in 0..signed.len() * 8 {
                let mut bad = signed.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(verify(&bad, &[secret(1, 7)]).is_err(), "bit {bit}");
            }
            for length in 0..signed.len() {
                assert!(verify(&signed[..length], &[secret(1, 7)]).is_err(), "cut to {length}");
            }
        }
    }

    #[test]
    fn a_foreign_secret_and_an_unknown_key_are_told_apart() {
        let (signed, _) = secret(1, 7).sign(&token());
        assert_eq!(verify(&signed, &[secret(1, 8)]), Err(TokenError::BadSignature));
        assert_eq!(verify(&signed, &[secret(2, 7)]), Err(TokenError::UnknownKey(KeyId(1))));
    }

    #[test]
    fn a_request_of_one_session_opens_in_no_other() {
        let (_, key) = secret(1, 7).sign(&token());
        let generation = Generation { boot: 1, counter: 1, process: ProcessId::from_bytes([2; 16]) };
        let here = key.session_key(&[1; 16], &generation, DeviceId(1));
        let mut body = Vec::new();
        here.seal(&[0; MAC_HEADER_SIZE], &5_u64, &mut body);
        assert!(here.opens(&[0; MAC_HEADER_SIZE], &body));
        assert_eq!(unsealed::<u64>(&body), Ok(5));
        assert!(!here.opens(&[1; MAC_HEADER_SIZE], &body), "another header");
        assert!(!key.session_key(&[2; 16], &generation, DeviceId(1)).opens(&[0; MAC_HEADER_SIZE], &body), "nonce");
        assert!(!key.session_key(&[1; 16], &generation, DeviceId(2)).opens(&[0; MAC_HEADER_SIZE], &body), "device");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let (_, key) = secret(1, 0x77).sign(&token());
        let session = key.session_key(&[1; 16], &Generation::default(), DeviceId(1));
        let printed = format!("{:?} {key:?} {session:?}", secret(1, 0x77));
        assert_eq!(printed, "Secret { id: 1 } TokenKey { .. } SessionKey { .. }");
    }
}
