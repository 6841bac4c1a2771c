//! The bridge between tensors and the slices that kernels work on.
//!
//! candle hands out shared storage only (`storage_and_layout`); to write into an existing tensor one goes
//! through an in-place op. Reading and writing two views of *one* storage at a time would wait for its lock for
//! ever, so an op's outputs never share storage with its inputs.
//!
//! What is on a GPU comes to the host and, if it is written, goes back: right, but slow. That is for what is done
//! once per training or checkpoint; ops of a step have a path of their own, and [`Gpu::round_trips`] tells of
//! those that have not.
//!
//! [`Gpu::round_trips`]: super::cuda::Gpu::round_trips

use std::borrow::Cow;
use std::cell::RefCell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, bail};

use super::cuda::GpuTensor;
use super::element::Element;
use super::tensor::Tensor;

/// Calls `f` with the elements of an f32 tensor.
///
/// # Errors
/// If the tensor is not f32 or not contiguous.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    read_as(tensor, f)
}

/// Calls `f` with the mutable elements of an f32 tensor; every view of the same storage sees the change.
///
/// # Errors
/// If the tensor is not f32 or not contiguous, and what `f` answers.
pub fn write<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
    write_as(tensor, f)
}

/// As [`read`], for any type of element.
///
/// # Errors
/// If the tensor is not of that type or not contiguous.
pub fn read_as<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    read_list(&[tensor], |slices| f(slices[0]))
}

/// Calls `f` with the elements of several contiguous tensors of one type.
///
/// # Errors
/// As [`read_as`].
pub fn read_list<T: Element, R>(tensors: &[&Tensor], f: impl FnOnce(&[&[T]]) -> R) -> Result<R> {
    let guards: Vec<_> = tensors
        .iter()
        .filter_map(|tensor| match tensor {
            Tensor::Host(tensor) => Some(tensor.storage_and_layout()),
            Tensor::Gpu(_) => None,
        })
        .collect();
    let mut guarded = guards.iter();
    let slices: Result<Vec<Cow<'_, [T]>>> = tensors
        .iter()
        .map(|tensor| match (tensor, guarded.as_slice()) {
            (Tensor::Gpu(tensor), _) => download(tensor).map(Cow::Owned),
            (Tensor::Host(_), [(storage, layout), ..]) => {
                guarded.next();
                elements(storage, layout).map(Cow::Borrowed)
            }
            (Tensor::Host(_), []) => bail!("a tensor without storage"),
        })
        .collect();
    let slices = slices?;
    Ok(f(&slices.iter().map(AsRef::as_ref).collect::<Vec<&[T]>>()))
}

fn elements<'a, T: Element>(storage: &'a Storage, layout: &Layout) -> Result<&'a [T]> {
    let Storage::Cpu(storage) = storage else {
        bail!("expected a tensor on the CPU")
    };
    let data = storage.as_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("expected a contiguous tensor"),
    }
}

fn download<T: Element>(tensor: &GpuTensor) -> Result<Vec<T>> {
    if tensor.dtype() != T::DTYPE {
        bail!(
            "expected elements of type {:?}, got {:?}",
            T::DTYPE,
            tensor.dtype()
        )
    }
    tensor.gpu().count_round_trip();
    tensor.read(T::ZERO)
}

/// As [`write`], for any type of element.
///
/// # Errors
/// If the tensor is not of that type or not contiguous, and what `f` answers.
pub fn write_as<T: Element, R>(
    tensor: &Tensor,
    f: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
    let tensor = match tensor {
        Tensor::Host(tensor) => tensor,
        Tensor::Gpu(tensor) => {
            let mut elements = download(tensor)?;
            let result = f(&mut elements)?;
            tensor.write(&elements)?;
            return Ok(result);
        }
    };
    let op = Write {
        state: RefCell::new(State::Pending(f)),
        element: PhantomData::<T>,
    };
    tensor.inplace_op1(&op)?;
    match op.state.into_inner() {
        State::Done(result) => Ok(result),
        State::Pending(_) | State::Running => bail!("the in-place op did not run"),
    }
}

/// Calls `f` with the mutable elements of several contiguous tensors of one type, no two of which share
/// storage.
///
/// # Errors
/// As [`write_as`].
pub fn write_list<T: Element, R>(
    tensors: &[&Tensor],
    f: impl FnOnce(Vec<&mut [T]>) -> Result<R>,
) -> Result<R> {
    let mut result = None;
    nest(tensors, Vec::with_capacity(tensors.len()), |parts| {
        // SAFETY: all writes that `nest` is inside of are still going on, so each part is exclusively
        // borrowed until this closure ends, which is longer than `f` has the slices.
        let slices = parts
            .into_iter()
            .map(|(start, len)| unsafe { std::slice::from_raw_parts_mut(start, len) });
        result = Some(f(slices.collect()));
    })?;
    match result {
        Some(result) => result,
        None => bail!("the in-place op did not run"),
    }
}

type Part<T> = (*mut T, usize);

/// Writes into the first tensor, within that into the next one, and so on; calls `f` inside of all.
fn nest<T: Element>(
    tensors: &[&Tensor],
    mut parts: Vec<Part<T>>,
    f: impl FnOnce(Vec<Part<T>>),
) -> Result<()> {
    let Some((first, rest)) = tensors.split_first() else {
        f(parts);
        return Ok(());
    };
    let f: Box<dyn FnOnce(Vec<Part<T>>) + '_> = Box::new(f);
    write_as(first, |data: &mut [T]| {
        parts.push((data.as_mut_ptr(), data.len()));
        nest(rest, parts, f)
    })
}

enum State<F, R> {
    Pending(F),
    Running,
    Done(R),
}

struct Write<T, F, R> {
    state: RefCell<State<F, R>>,
    element: PhantomData<T>,
}

impl<T: Element, F: FnOnce(&mut [T]) -> Result<R>, R> InplaceOp1 for Write<T, F, R> {
    fn name(&self) -> &'static str {
        "view-write"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some(data) = T::slice_mut(storage) else {
            bail!("expected elements of type {:?}", T::DTYPE)
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor")
        };
        let State::Pending(f) = self.state.replace(State::Running) else {
            bail!("the in-place op ran twice")
        };
        let result = f(&mut data[start..end])?;
        self.state.replace(State::Done(result));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::kernels::device::Device;

    #[test]
    fn writes_through_a_view_reach_the_whole() {
        let whole = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        let row = whole.rows(1, 1).unwrap();
        write(&row, |x| {
            x.copy_from_slice(&[1.0, 2.0]);
            Ok(())
        })
        .unwrap();
        assert_eq!(
            read(&whole, <[f32]>::to_vec).unwrap(),
            [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]
        );
    }

    #[test]
    fn several_are_written_at_once() {
        let tensors = [2, 0, 3].map(|n| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap());
        let list: Vec<&Tensor> = tensors.iter().collect();
        write_list(&list, |parts: Vec<&mut [f32]>| {
            for (i, part) in parts.into_iter().enumerate() {
                part.fill(i as f32 + 1.0);
            }
            Ok(())
        })
        .unwrap();
        let seen = read_list(&list, |parts: &[&[f32]]| parts.concat()).unwrap();
        assert_eq!(seen, [1.0, 1.0, 3.0, 3.0, 3.0]);
        let other = Tensor::zeros(1, DType::U32, &Device::Cpu).unwrap();
        assert!(write_list(&[&tensors[0], &other], |_: Vec<&mut [f32]>| Ok(())).is_err());
        assert!(read_list(&[&other], |_: &[&[f32]]| ()).is_err());
    }

    #[test]
    fn strided_or_other_dtypes_are_refused() {
        let t = candle_core::Tensor::zeros((2, 2), DType::F32, &candle_core::Device::Cpu).unwrap();
        assert!(read(&t.t().unwrap().into(), |_| ()).is_err());
        let u = Tensor::zeros(2, DType::U32, &Device::Cpu).unwrap();
        assert!(read(&u, |_| ()).is_err());
        assert!(write(&u, |_| Ok(())).is_err());
    }
}
