//! One GPU: its context, its stream, our kernels on it.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Error, Result, bail};
use cudarc::driver::sys::CUdevice_attribute_enum::{
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::blas::Blas;
use super::memory::Memory;
use super::staging::Staging;

/// Our kernels, for several generations of cards.
#[cfg(feature = "cuda")]
static IMAGE: &Image<[u8]> = &Image(*include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin")));
#[cfg(not(feature = "cuda"))]
static IMAGE: &Image<[u8]> = &Image([0; 8]);

/// The driver reads the image's header as words.
#[repr(C, align(64))]
struct Image<T: ?Sized>(T);

/// The oldest cards with bf16 products and asynchronous copies: Ampere.
const OLDEST: (i32, i32) = (8, 0);

/// A GPU that this process may use.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    multiprocessors: u32,
    shared_memory: u32,
    module: Module,
    kernels: Mutex<HashMap<&'static str, Kernel>>,
    blas: Mutex<Option<Blas>>,
    scratch: Mutex<Option<Memory>>,
    staging: Mutex<Staging>,
    round_trips: AtomicU64,
}

/// Never unloaded: a GPU lives as long as its process.
struct Module(sys::CUmodule);

/// A kernel that was looked up, with the dynamic shared memory it may use.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub function: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: the driver's handles are valid on every thread that has bound the context, and each call binds it.
unsafe impl Send for Module {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Kernel {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A driver's error as ours; lack of memory as such, so that a smaller micro-batch is tried.
pub(super) fn failed(what: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |error| match error.0 {
        sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
            Error::Io(std::io::Error::from(std::io::ErrorKind::OutOfMemory))
        }
        code => DeviceError(format!("{what}: the CUDA driver says {code:?}")).into(),
    }
}

/// The GPU cannot be used, or failed in the middle. The process cannot go on with it; another may.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub(super) String);

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Self {
        Self::Cuda(Box::new(error))
    }
}

impl Gpu {
    /// The `ordinal`-th of the GPUs that this process may use (`CUDA_VISIBLE_DEVICES`).
    ///
    /// # Errors
    /// If there is no driver or no such GPU, it is too old, or this program has no kernels for it.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        // SAFETY: loading NVIDIA's library runs its initialisers, as the driver intends.
        if !unsafe { sys::is_culib_present() } {
            let why = "there is no NVIDIA driver here: libcuda.so was not found";
            return Err(DeviceError(why.to_owned()).into());
        }
        let context = CudaContext::new(ordinal).map_err(failed("no GPU can be used"))?;
        let name = context.name().map_err(failed("the GPU's name"))?;
        let capability = context
            .compute_capability()
            .map_err(failed("the GPU's generation"))?;
        if capability < OLDEST {
            let (major, minor) = capability;
            let why = format!(
                "{name} has compute capability {major}.{minor}; chandler needs 8.0 (Ampere) or newer"
            );
            return Err(DeviceError(why).into());
        }
        let attribute = |which| {
            let value = context
                .attribute(which)
                .map_err(failed("the GPU's properties"))?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
        };
        let stream = context.new_stream().map_err(failed("a stream"))?;
        if context.has_async_alloc() {
            keep_freed_memory(ordinal).map_err(failed("the GPU's memory"))?;
        }
        Ok(Arc::new(Self {
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            module: load_module()?,
            context,
            stream,
            name,
            kernels: Mutex::default(),
            blas: Mutex::default(),
            scratch: Mutex::default(),
            staging: Mutex::new(Staging::new()),
            round_trips: AtomicU64::new(0),
        }))
    }

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many blocks can run at the same time, at least.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// (free, all) bytes of its memory.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context
            .mem_get_info()
            .map_err(failed("the GPU's memory"))
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// What went wrong in any of it.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("work on the GPU"))
    }

    /// How often a tensor's contents went to the host and back because an op has no GPU path.
    pub fn round_trips(&self) -> u64 {
        self.round_trips.load(Ordering::Relaxed)
    }

    pub(in crate::kernels) fn count_round_trip(&self) {
        self.round_trips.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes the context this thread's.
    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("the GPU"))
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    pub(super) fn has_async_alloc(&self) -> bool {
        self.context.has_async_alloc()
    }

    /// A kernel of our image, allowed to use `shared_bytes` of dynamic shared memory.
    pub(super) fn kernel(&self, name: &'static str, shared_bytes: u32) -> Result<Kernel> {
        /// What a kernel may use without asking.
        const FREE_SHARED_BYTES: u32 = 48 << 10;
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = match kernels.get_mut(name) {
            Some(kernel) => kernel,
            None => {
                let c_name = CString::new(name).map_err(Error::wrap)?;
                // SAFETY: the module was loaded in this context and is never unloaded.
                let function = unsafe { result::module::get_function(self.module.0, c_name) };
                kernels.entry(name).or_insert(Kernel {
                    function: function.map_err(failed(name))?,
                    shared_bytes: FREE_SHARED_BYTES,
                })
            }
        };
        if shared_bytes > kernel.shared_bytes {
            if shared_bytes > self.shared_memory {
                bail!(
                    "{name} needs {shared_bytes} bytes of shared memory, the GPU has {}",
                    self.shared_memory
                )
            }
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let value = i32::try_from(shared_bytes).map_err(Error::wrap)?;
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(kernel.function, attribute, value) }
                .map_err(failed(name))?;
            kernel.shared_bytes = shared_bytes;
        }
        Ok(*kernel)
    }

    /// Calls `f` with cuBLASLt, loaded at the first call.
    pub(super) fn with_blas<R>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut Blas) -> Result<R>,
    ) -> Result<R> {
        let mut blas = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *blas {
            Some(blas) => f(blas),
            none => f(none.insert(Blas::open(self)?)),
        }
    }

    /// Calls `f` with what uploads pass through.
    pub(super) fn with_staging<R>(&self, f: impl FnOnce(&mut Staging) -> R) -> R {
        f(&mut self.staging.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `f` with `bytes` of memory that ops share for partial results. Work is in order, so the next op's
    /// use of it waits for this one's.
    ///
    /// # Errors
    /// If memory is short, and what `f` answers.
    pub fn with_scratch<R>(
        self: &Arc<Self>,
        bytes: usize,
        f: impl FnOnce(super::Address) -> Result<R>,
    ) -> Result<R> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let large_enough = scratch
            .as_ref()
            .is_some_and(|memory| memory.bytes() >= bytes);
        if !large_enough {
            *scratch = None;
            *scratch = Some(Memory::new(self, bytes.next_power_of_two())?);
        }
        f(scratch
            .as_ref()
            .map_or(super::Address::NULL, Memory::address))
    }
}

/// Memory that was freed stays with the process. By default the driver takes it back at every wait, and maps it again
/// at the next step, which takes longer than the step's small ops.
fn keep_freed_memory(ordinal: usize) -> std::result::Result<(), DriverError> {
    let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own, and the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(result::device::get(ordinal)?)?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
}

fn load_module() -> Result<Module> {
    // SAFETY: the image is a whole fat binary with a header that says how long it is.
    let module = unsafe { result::module::load_data(IMAGE.0.as_ptr().cast()) };
    match module {
        Ok(module) => Ok(Module(module)),
        Err(_) if cfg!(not(feature = "cuda")) => {
            let why =
                "this program was built without kernels for GPUs: build it with --features cuda";
            Err(DeviceError(why.to_owned()).into())
        }
        Err(error) => Err(failed("the kernels could not be loaded")(error)),
    }
}
