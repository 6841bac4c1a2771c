//! Matrix products by cuBLASLt (<https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api>).
//!
//! The library's matrices lie column by column, ours row by row: what is `C = A B` here is `Cᵀ = Bᵀ Aᵀ` there,
//! with the same memory.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::{DType, Error, Result, bail};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as Attribute};

use super::gpu::{DeviceError, Gpu};
use super::memory::{Address, Memory};

/// What NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Products whose sizes differ by less share an algorithm: micro-batches rarely have the same number of tokens,
/// and looking an algorithm up costs as much as a small product.
const ROUND: usize = 256;

/// One factor of a product.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    pub address: Address,
    pub dtype: DType,
    /// Whether it lies in memory as its transpose.
    pub transposed: bool,
}

/// What happens to sums before they are written.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue {
    None,
    /// A row of the output's type is added to every row.
    Bias(Address),
    /// They are added to what is there.
    Accumulate,
}

/// `out [rows, columns] = left [rows, depth] right [depth, columns]`, with sums in f32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
    pub left: Factor,
    pub right: Factor,
    pub out: Address,
    pub out_dtype: DType,
    pub epilogue: Epilogue,
}

/// The library, and the algorithms it chose.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    algorithms: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
}

/// What the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    transposed: [bool; 2],
    dtypes: [DType; 2],
    epilogue: u8,
    alignments: [u32; 3],
}

// SAFETY: a handle may be used by any thread, one at a time; ours is behind a lock.
unsafe impl Send for Blas {}

fn failed(what: &'static str) -> impl FnOnce(CublasError) -> Error {
    move |error| DeviceError(format!("{what}: cuBLASLt says {:?}", error.0)).into()
}

impl Gpu {
    /// Puts a product into the stream.
    ///
    /// # Safety
    /// The addresses are those of matrices of these sizes and types, and `out` is neither factor.
    ///
    /// # Errors
    /// If the library is not there or has no algorithm for it.
    pub unsafe fn multiply(self: &Arc<Self>, product: &Product) -> Result<()> {
        if product.rows == 0 || product.columns == 0 {
            return Ok(());
        }
        if product.depth == 0 {
            bail!("a product of depth 0")
        }
        self.bind()?;
        self.with_blas(|blas| {
            let key = Key::of(product);
            if !blas.algorithms.contains_key(&key) {
                let algorithm = blas.choose(&product.rounded())?;
                blas.algorithms.insert(key, algorithm);
            }
            let algorithm = blas.algorithms[&key];
            // SAFETY: the caller's.
            match unsafe { blas.run(self, product, &algorithm) } {
                // Chosen for sizes a little larger; these may need one of their own.
                Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => {
                    let own = blas.choose(product)?;
                    // SAFETY: the caller's.
                    unsafe { blas.run(self, product, &own) }
                }
                done => done,
            }
            .map_err(failed("a matrix product"))
        })
    }
}

impl Key {
    fn of(product: &Product) -> Self {
        let alignment = |address: Address| 1 << address.0.trailing_zeros().min(8);
        let largest = product.rounded();
        Self {
            sizes: [largest.rows, largest.columns, largest.depth],
            transposed: [product.left.transposed, product.right.transposed],
            dtypes: [product.left.dtype, product.out_dtype],
            epilogue: match product.epilogue {
                Epilogue::None => 0,
                Epilogue::Bias(_) => 1,
                Epilogue::Accumulate => 2,
            },
            alignments: [product.left.address, product.right.address, product.out].map(alignment),
        }
    }
}

impl Product {
    /// With the number of rows of a packed micro-batch rounded up: it is the depth where the left factor is
    /// transposed.
    fn rounded(&self) -> Self {
        let mut largest = *self;
        let tokens = if self.left.transposed {
            &mut largest.depth
        } else {
            &mut largest.rows
        };
        *tokens = tokens.next_multiple_of(ROUND);
        largest
    }
}

/// The library's view of a product, freed with it.
struct Described {
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
}

impl Described {
    fn new(product: &Product) -> std::result::Result<Self, CublasError> {
        let Product {
            rows,
            columns,
            depth,
            left,
            right,
            ..
        } = *product;
        let layout = |dtype, [first, second]: [usize; 2]| {
            result::create_matrix_layout(
                data_type(dtype),
                first as u64,
                second as u64,
                first as i64,
            )
        };
        let stored = |factor: Factor, [first, second]: [usize; 2]| {
            let dims = if factor.transposed {
                [second, first]
            } else {
                [first, second]
            };
            layout(factor.dtype, dims)
        };
        let this = Self {
            operation: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            )?,
            a: stored(right, [columns, depth])?,
            b: stored(left, [depth, rows])?,
            c: layout(product.out_dtype, [columns, rows])?,
        };
        this.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            i32::from(right.transposed),
        )?;
        this.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            i32::from(left.transposed),
        )?;
        if let Epilogue::Bias(bias) = product.epilogue {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            this.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            this.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        Ok(this)
    }

    fn set<T>(&self, attribute: Attribute, value: T) -> std::result::Result<(), CublasError> {
        let value = std::ptr::from_ref(&value).cast();
        // SAFETY: the descriptor lives, and the attribute is of the value's type.
        unsafe {
            result::set_matmul_desc_attribute(self.operation, attribute, value, size_of::<T>())
        }
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and nobody else has them. Freeing them cannot fail in a way that matters.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            for layout in [self.a, self.b, self.c] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Blas {
    pub(super) fn open(gpu: &Arc<Gpu>) -> Result<Self> {
        // SAFETY: loading NVIDIA's library runs its initialisers, as it intends.
        if !unsafe { sys::is_culib_present() } {
            let why = "libcublasLt.so was not found: install the cuBLAS of CUDA 13, or use the CUDA image";
            return Err(DeviceError(why.to_owned()).into());
        }
        Ok(Self {
            handle: result::create_handle().map_err(failed("cuBLASLt cannot be used"))?,
            workspace: Memory::new(gpu, WORKSPACE_BYTES)?,
            algorithms: HashMap::new(),
        })
    }

    fn choose(&self, product: &Product) -> Result<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let choose = || {
            let described = Described::new(product)?;
            let preference = Preferences(result::create_matmul_pref()?);
            preference.set(
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                WORKSPACE_BYTES as u64,
            )?;
            let [left, right, out] = Key::of(product).alignments;
            for (attribute, alignment) in [
                (
                    Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                    right,
                ),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, left),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
            ] {
                preference.set(attribute, alignment)?;
            }
            let Described { operation, a, b, c } = described;
            // SAFETY: all of them live until the end of this block.
            unsafe {
                result::get_matmul_algo_heuristic(self.handle, operation, a, b, c, c, preference.0)
            }
        };
        let found = choose().map_err(failed("no algorithm for a matrix product"))?;
        Ok(found.algo)
    }

    /// # Safety
    /// As [`Gpu::multiply`].
    unsafe fn run(
        &self,
        gpu: &Gpu,
        product: &Product,
        algorithm: &sys::cublasLtMatmulAlgo_t,
    ) -> std::result::Result<(), CublasError> {
        let described = Described::new(product)?;
        let alpha = 1f32;
        let beta = f32::from(matches!(product.epilogue, Epilogue::Accumulate));
        let pointer = |address: Address| address.0 as *mut c_void;
        // SAFETY: the descriptors live until the end; the caller answers for the addresses.
        unsafe {
            result::matmul(
                self.handle,
                described.operation,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                pointer(product.right.address),
                described.a,
                pointer(product.left.address),
                described.b,
                pointer(product.out),
                described.c,
                pointer(product.out),
                described.c,
                algorithm,
                pointer(self.workspace.address()),
                WORKSPACE_BYTES,
                gpu.stream().cast(),
            )
        }
    }
}

struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> std::result::Result<(), CublasError> {
        let value = std::ptr::from_ref(&value).cast();
        // SAFETY: the descriptor lives, and the attribute is of the value's type.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>()) }
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: created by `choose`, and nobody else has it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn data_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}
