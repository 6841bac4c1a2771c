//! Launches of `attention.cu` and, for bf16 and heads of 32 or 64, of `flash_*.cu`. Shapes are checked by the
//! caller.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::{Attention, Queries};
use crate::kernels::cuda::{Address, Gpu, Grid, of_dtype};
use crate::kernels::tensor::Tensor;

/// Threads of a block, in all kernels.
const THREADS: u32 = 128;
/// The widest head of the kernels for any: `PARTS` times 32.
const WIDEST: usize = 128;

/// One of the kernels, as it is launched.
struct Kernel {
    name: &'static str,
    /// Rows of a block: of queries, or of keys for `dkdv`.
    rows: usize,
    shared_bytes: usize,
}

/// The three kernels for one type and width of head.
struct Kernels {
    forward: Kernel,
    backward_dq: Kernel,
    backward_dkdv: Kernel,
    /// Whether they take the head's width and whose queries there are.
    any_head: bool,
}

impl Kernels {
    fn of(attention: &Attention<'_>, dtype: DType, dim: usize) -> Result<Self> {
        let names = match (dtype, dim, attention.queries) {
            (DType::BF16, 32, Queries::All) => [
                "attention_forward_bf16_hd32",
                "attention_backward_dq_bf16_hd32",
                "attention_backward_dkdv_bf16_hd32",
            ],
            (DType::BF16, 64, Queries::All) => [
                "attention_forward_bf16_hd64",
                "attention_backward_dq_bf16_hd64",
                "attention_backward_dkdv_bf16_hd64",
            ],
            _ => return Self::of_any_head(dtype, dim),
        };
        let kernel = |i: usize, rows, shared_bytes| Kernel {
            name: names[i],
            rows,
            shared_bytes,
        };
        Ok(Self {
            forward: kernel(0, 64, 640 * dim),
            backward_dq: kernel(1, 64, 768 * dim),
            backward_dkdv: kernel(2, 128, 1024 * dim + 3584),
            any_head: false,
        })
    }

    fn of_any_head(dtype: DType, dim: usize) -> Result<Self> {
        if dim > WIDEST {
            bail!("attention: GPUs take heads of up to {WIDEST} numbers, not {dim}")
        }
        let kernel = |f32, bf16| -> Result<Kernel> {
            Ok(Kernel {
                name: of_dtype(dtype, f32, bf16)?,
                rows: 16,
                shared_bytes: 384 * dim.next_multiple_of(4) + 4352,
            })
        };
        Ok(Self {
            forward: kernel("attention_forward_f32", "attention_forward_bf16")?,
            backward_dq: kernel("attention_backward_dq_f32", "attention_backward_dq_bf16")?,
            backward_dkdv: kernel(
                "attention_backward_dkdv_f32",
                "attention_backward_dkdv_bf16",
            )?,
            any_head: true,
        })
    }
}

/// Writes `ctx` and `lse`.
pub fn forward(
    gpu: &Arc<Gpu>,
    attention: &Attention<'_>,
    [q, k, v]: [&Tensor; 3],
    ctx: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let call = Call::new(gpu, attention, ctx)?;
    let [q, k, v, ctx] = gpu.addresses([q, k, v, ctx], ctx.dtype())?;
    let lse = gpu.address(lse, DType::F32)?;
    // SAFETY: the caller checked all shapes.
    unsafe { call.run(&call.kernels.forward, call.asking(), &[q, k, v, ctx, lse]) }
}

/// Writes `dq`, `dk` and `dv`.
pub fn backward(
    gpu: &Arc<Gpu>,
    attention: &Attention<'_>,
    dctx: &Tensor,
    [q, k, v]: [&Tensor; 3],
    [ctx, lse]: [&Tensor; 2],
    [dq, dk, dv]: [&Tensor; 3],
) -> Result<()> {
    let call = Call::new(gpu, attention, ctx)?;
    let dtype = ctx.dtype();
    let delta_bytes = size_of::<f32>() * lse.elem_count();
    let [dctx, q, k, v, ctx] = gpu.addresses([dctx, q, k, v, ctx], dtype)?;
    let [dq, dk, dv] = gpu.addresses([dq, dk, dv], dtype)?;
    let lse = gpu.address(lse, DType::F32)?;
    gpu.with_scratch(delta_bytes, |delta| {
        let kernels = &call.kernels;
        // SAFETY: the caller checked all shapes; delta is of lse's. The second launch comes after the first.
        unsafe {
            let arguments = [dctx, q, k, v, ctx, lse, delta, dq];
            call.run(&kernels.backward_dq, call.asking(), &arguments)?;
            let arguments = [dctx, q, k, v, lse, delta, dk, dv];
            call.run(&kernels.backward_dkdv, call.longest, &arguments)
        }
    })
}

/// What the launches of a call have in common.
struct Call<'a> {
    gpu: &'a Arc<Gpu>,
    attention: &'a Attention<'a>,
    kernels: Kernels,
    /// Width of a head.
    dim: usize,
    /// Tokens of the longest sequence.
    longest: usize,
}

impl<'a> Call<'a> {
    fn new(gpu: &'a Arc<Gpu>, attention: &'a Attention<'a>, ctx: &Tensor) -> Result<Self> {
        let dim = ctx.dims2()?.1 / attention.num_heads;
        let lengths = attention.cu_seqlens.windows(2).map(|w| w[1] - w[0]);
        Ok(Self {
            kernels: Kernels::of(attention, ctx.dtype(), dim)?,
            gpu,
            attention,
            dim,
            longest: lengths.max().unwrap_or(0) as usize,
        })
    }

    /// Queries of a sequence, at most. (The first token of an empty one has outputs too.)
    fn asking(&self) -> usize {
        match self.attention.queries {
            Queries::All => self.longest,
            Queries::First => 1,
        }
    }

    /// Blocks for `rows` rows of each sequence and head.
    ///
    /// # Safety
    /// `tensors` are what the kernel takes before `cu_seqlens`, of the shapes that it says.
    unsafe fn run(&self, kernel: &Kernel, rows: usize, tensors: &[Address]) -> Result<()> {
        let attention = self.attention;
        let sequences = attention.cu_seqlens.len().saturating_sub(1);
        let blocks = [rows.div_ceil(kernel.rows), attention.num_heads, sequences];
        let mut grid = Grid::of(blocks, THREADS);
        grid.shared_bytes = u32::try_from(kernel.shared_bytes).unwrap_or(u32::MAX);
        let cu_seqlens = attention.cu_seqlens.on(self.gpu)?;
        let token_keys = attention.token_keys.on(self.gpu)?;
        let mut launch = self.gpu.launch(kernel.name);
        for &tensor in tensors {
            launch = launch.arg(tensor);
        }
        launch = launch.arg(cu_seqlens.address()).arg(token_keys.address());
        if self.kernels.any_head {
            let first_only = u32::from(attention.queries == Queries::First);
            launch = launch.size(self.dim).arg(first_only);
        }
        // SAFETY: the caller's; the sequences cover the rows, and each row has a key.
        unsafe { launch.arg(attention.dropout).run(grid) }
    }
}
