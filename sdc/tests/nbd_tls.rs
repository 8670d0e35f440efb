//! TLS as clients speak it: `nbdinfo`, `nbdcopy` and `qemu-img` with certificates that are made here, against the NBD server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nbd/client.rs"]
mod nbd;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use pflex_common::tls::{self, Clients};
use pflex_proto::ids::ByteCount;
use pflex_sdc::block::MemoryExports;
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

const SIZE: u64 = 64 << 20;

/// An authority, and what it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Files as the tools name them, for a `client` or a `server`.
    fn sign(&self, dir: &Path, who: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, who);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        std::fs::write(dir.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }
}

async fn start(dir: &Path, clients: Clients) -> (u16, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let exports = Arc::new(MemoryExports::default().with("demo", ByteCount(SIZE), false));
    let server = NbdServer::new(exports, ServerLimits::default()).with_tls(tls::server(dir, clients).unwrap());
    let shutdown = CancellationToken::new();
    tokio::spawn(server.serve_tcp(listener, shutdown.clone()));
    (port, shutdown.drop_guard())
}

async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let started = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = started.unwrap_or_else(|error| panic!("{program} cannot be run ({error}): `make deps` installs it"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn uri(port: u16, certificates: &Path) -> String {
    format!("nbds://localhost:{port}/demo?tls-certificates={}", certificates.display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_a_certificate_are_served_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client, stranger) = (dir.path().join("server"), dir.path().join("client"), dir.path().join("other"));
    let authority = Authority::new();
    authority.sign(&server, "server");
    authority.sign(&client, "client");
    // Trusts the server, and was signed by somebody else.
    Authority::new().sign(&stranger, "client");
    std::fs::copy(client.join("ca-cert.pem"), stranger.join("ca-cert.pem")).unwrap();
    let (port, _server) = start(&server, Clients::Verified).await;

    let info = run("nbdinfo", &["--json", &uri(port, &client)]).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["TLS"], &info["exports"][0]["export-size"]), (&true.into(), &SIZE.into()));
    let file = dir.path().join("file");
    let data: Vec<u8> = (0..SIZE as usize).map(|i| (i / 5 % 251) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let file = file.to_str().unwrap();
    run("nbdcopy", &["--flush", file, &uri(port, &client)]).await.unwrap();
    let tls = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", client.display());
    let image = format!("driver=nbd,host=localhost,port={port},export=demo,tls-creds=tls0");
    let compared = run(
        "qemu-img",
        &[
            "compare",
            "--object",
            &tls,
            "--image-opts",
            &format!("driver=raw,file.driver=file,file.filename={file}"),
            &image,
        ],
    )
    .await;
    assert!(compared.as_ref().is_ok_and(|said| said.contains("identical")), "{compared:?}");

    assert!(run("nbdinfo", &[&uri(port, &stranger)]).await.is_err(), "a certificate of somebody else");
    assert!(run("nbdinfo", &[&format!("nbd://localhost:{port}/demo")]).await.is_err(), "in plain text");
    let mut plain = nbd::Client::greet(TcpStream::connect(("127.0.0.1", port)).await.unwrap(), 3).await;
    for option in [nbd::OPT_LIST, nbd::OPT_GO] {
        assert_eq!(plain.option(option, &[]).await.last().unwrap().0, 0x8000_0005, "NBD_REP_ERR_TLS_REQD");
    }
    plain.send_option(nbd::OPT_EXPORT_NAME, b"demo").await;
    assert!(plain.try_option(nbd::OPT_LIST, &[]).await.is_none(), "the session is ended");

    // Others go on whatever a client sends in place of TLS.
    for garbage in [&b""[..], b"\x16\x03\x01", &[0x55; 4096]] {
        let mut client = nbd::Client::greet(TcpStream::connect(("127.0.0.1", port)).await.unwrap(), 3).await;
        assert_eq!(client.option(nbd::OPT_STARTTLS, &[]).await.last().unwrap().0, 1);
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, garbage).await.unwrap();
    }
    run("nbdinfo", &[&uri(port, &client)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_verification_any_client_is_served_over_tls_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (dir.path().join("server"), dir.path().join("client"));
    let authority = Authority::new();
    authority.sign(&server, "server");
    authority.sign(&client, "client");
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(client.join(name)).unwrap();
    }
    let (port, guard) = start(&server, Clients::Anyone).await;
    let written = run("nbdinfo", &["--size", &uri(port, &client)]).await.unwrap();
    assert_eq!(written.trim(), SIZE.to_string());
    assert!(run("nbdinfo", &[&format!("nbd://localhost:{port}/demo")]).await.is_err());
    drop(guard);
    let (port, _server) = start(&server, Clients::Verified).await;
    assert!(run("nbdinfo", &[&uri(port, &client)]).await.is_err(), "it has no certificate");
}
