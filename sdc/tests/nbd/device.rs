//! A device whose requests a test can see, hold up and fail.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use pflex_proto::ids::{ByteCount, ByteOffset};
use pflex_sdc::block::{
    BlockBackend, ByteRange, Durability, Export, ExportInfo, ExportSummary, Exports, Extent, IoError, MemoryBackend,
    OpenError, Payload, ZeroOptions,
};
use pflex_sdc::nbd::{NbdServer, ServerLimits};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Form};

pub(crate) const SIZE: u64 = 64 << 20;

/// Memory with a gate and a record.
pub(crate) struct Device {
    memory: MemoryBackend,
    /// Each request takes a place and gives it back.
    pub(crate) gate: Semaphore,
    /// What was asked, in words.
    pub(crate) asked: Mutex<Vec<String>>,
    /// What every request fails with.
    pub(crate) broken: Mutex<Option<IoError>>,
}

impl Device {
    async fn pass(&self, what: String) -> Result<(), IoError> {
        self.asked.lock().unwrap().push(what);
        drop(self.gate.acquire().await);
        self.broken.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl BlockBackend for Device {
    async fn read(&self, range: ByteRange) -> Result<Payload, IoError> {
        self.pass(format!("read {}+{}", range.offset, range.length.0)).await?;
        self.memory.read(range).await
    }

    async fn write(&self, offset: ByteOffset, data: Bytes, durability: Durability) -> Result<(), IoError> {
        self.pass(format!("write {offset}+{} {durability:?}", data.len())).await?;
        self.memory.write(offset, data, durability).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.pass("flush".into()).await
    }

    async fn trim(&self, range: ByteRange, durability: Durability) -> Result<(), IoError> {
        self.pass(format!("trim {}+{} {durability:?}", range.offset, range.length.0)).await?;
        self.memory.trim(range, durability).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), IoError> {
        self.pass(format!("zero {}+{} {:?}", range.offset, range.length.0, options.durability)).await?;
        if options.only_if_fast && options.keep_provisioned {
            return Err(IoError::NotSupported("provisioned zeros are written like any bytes"));
        }
        self.memory.write_zeroes(range, options).await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), IoError> {
        self.pass(format!("cache {}+{}", range.offset, range.length.0)).await
    }

    async fn extents(&self, range: ByteRange, most: usize) -> Result<Vec<Extent>, IoError> {
        self.pass(format!("extents {}+{}", range.offset, range.length.0)).await?;
        self.memory.extents(range, most).await
    }
}

/// One device under two names: `demo`, and `frozen` read-only.
pub(crate) struct Offer {
    pub(crate) device: Arc<Device>,
    pub(crate) size: AtomicU64,
    pub(crate) ended: CancellationToken,
    /// Further names in the list.
    pub(crate) listed: usize,
}

impl Exports for Offer {
    type Backend = Device;

    fn list(&self) -> Vec<ExportSummary> {
        let more = (0..self.listed).map(|nth| format!("listed-{nth}"));
        let names = ["demo".to_owned(), "frozen".to_owned()].into_iter().chain(more);
        names.map(|name| ExportSummary { description: format!("what {name} is"), name }).collect()
    }

    async fn open(&self, name: &str) -> Result<Export<Device>, OpenError> {
        if self.ended.is_cancelled() || !["demo", "frozen", ""].contains(&name) {
            return Err(OpenError::Unknown { name: name.to_owned() });
        }
        let name = if name.is_empty() { "demo" } else { name };
        let info = ExportInfo {
            name: name.to_owned(),
            description: format!("what {name} is"),
            size: ByteCount(self.size.load(Ordering::Relaxed)),
            read_only: name == "frozen",
        };
        Ok(Export { info, backend: Arc::clone(&self.device), ended: self.ended.clone() })
    }
}

/// A server of it.
pub(crate) struct Server {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) offer: Arc<Offer>,
    pub(crate) nbd: NbdServer<Offer>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(limits: ServerLimits, listed: usize) -> Self {
        let device = Device {
            memory: MemoryBackend::new(ByteCount(SIZE)),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            asked: Mutex::default(),
            broken: Mutex::default(),
        };
        let offer = Arc::new(Offer {
            device: Arc::new(device),
            size: AtomicU64::new(SIZE),
            ended: CancellationToken::new(),
            listed,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let nbd = NbdServer::new(Arc::clone(&offer), limits);
        let task = tokio::spawn(nbd.clone().serve_tcp(listener, shutdown.clone()));
        Self { address, offer, nbd, shutdown, task }
    }

    pub(crate) async fn with_defaults() -> Self {
        Self::start(ServerLimits::default(), 0).await
    }

    pub(crate) async fn stream(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub(crate) async fn open(&self, form: Form) -> Client<TcpStream> {
        Client::open(self.stream().await, "demo", form).await
    }

    pub(crate) async fn open_named(&self, name: &str, form: Form) -> Client<TcpStream> {
        Client::open(self.stream().await, name, form).await
    }

    /// What the device was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.offer.device.asked.lock().unwrap())
    }

    /// Closes the gate for all requests that come now.
    pub(crate) fn hold(&self) {
        self.offer.device.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(crate) fn let_go(&self) {
        self.offer.device.gate.add_permits(1 << 20);
    }
}

/// Waits for the end of a connection; whether it came without another byte.
pub(crate) async fn is_closed(stream: &mut TcpStream) -> bool {
    use tokio::io::AsyncReadExt as _;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    ended.is_ok() && rest.is_empty()
}
