//! TLS from files: a directory with PEM files under the names that qemu, libnbd and nbdkit use for theirs.
//!
//! `ca-cert.pem` signs everybody, `server-cert.pem` (with what is between it and the authority) and `server-key.pem` are the
//! server's own. TLS 1.3 only. Files are read once, at the start of the process: a new certificate takes a restart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::TLS13,
};

/// Who signs.
pub const AUTHORITY: &str = "ca-cert.pem";
/// The server's certificate.
pub const SERVER_CERTIFICATE: &str = "server-cert.pem";
/// Its key.
pub const SERVER_KEY: &str = "server-key.pem";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is not there, or is none.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file without what it is for.
    #[error("{path} has no certificate")]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// A certificate that is no authority's.
    #[error("{path} is of no certificate authority: {source}")]
    Authority {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority cannot be asked about clients.
    #[error("clients cannot be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// Certificate and key do not belong together, or are of a kind that is not known here.
    #[error("the certificate and key in {dir} cannot be used: {source}")]
    Pair {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clients {
    /// One that the authority signed, or the handshake fails.
    Verified,
    /// They are not asked for one: whoever reaches the port is served, and nobody listens in.
    Anyone,
}

/// What a server needs to speak TLS, from the files in `dir`.
///
/// # Errors
/// [`TlsError`]; names the file.
pub fn server(dir: &Path, clients: Clients) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&dir.join(SERVER_CERTIFICATE))?;
    let path = dir.join(SERVER_KEY);
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|source| TlsError::File { path, source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong_pair = |source| TlsError::Pair { dir: dir.to_owned(), source };
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[&TLS13]);
    let builder = versions.map_err(wrong_pair)?;
    let builder = match clients {
        Clients::Anyone => builder.with_no_client_auth(),
        Clients::Verified => {
            let path = dir.join(AUTHORITY);
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&path)? {
                roots.add(certificate).map_err(|source| TlsError::Authority { path: path.clone(), source })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    builder.with_single_cert(chain, key).map(Arc::new).map_err(wrong_pair)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::File { path: path.to_owned(), source };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    let found = found.map_err(wrong)?;
    if found.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = server(dir.path(), Clients::Verified).unwrap_err().to_string();
        assert!(error.contains(SERVER_CERTIFICATE), "{error}");
        std::fs::write(dir.path().join(SERVER_CERTIFICATE), "no certificate").unwrap();
        let error = server(dir.path(), Clients::Anyone).unwrap_err();
        assert!(matches!(error, TlsError::Empty { .. }), "{error}");
    }
}
