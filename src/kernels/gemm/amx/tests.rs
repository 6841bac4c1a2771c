use super::model::{self, Model};
use super::*;

/// Deterministic bf16 pairs of numbers in [-1, 1), a few of them tiny enough to count as zero.
fn pairs(n: usize, seed: u32) -> Vec<u32> {
    let mut state = seed;
    let mut half = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let x = if state >> 28 == 3 { x * 1e-39 } else { x };
        x.to_bits() >> 16
    };
    (0..n).map(|_| half() | half() << 16).collect()
}

fn floats(n: usize, seed: u32) -> Vec<f32> {
    let words = pairs(n, seed).into_iter();
    words.map(|w| f32::from_bits(w & 0xFFFF_0000)).collect()
}

/// A product of `rows` rows, as many at a time as the kernel takes, in rows of results that are one longer.
fn product<T: Tiles>(rows: usize, depth: usize, width: usize, start: &str) -> Vec<f32> {
    let left = pairs(rows * depth, 5);
    let right = pairs(depth * width, 6);
    let bias = floats(width, 7);
    let mut out = floats(rows * (width + 1), 8);
    let mut row = 0;
    while row < rows {
        let count = super::rows(rows - row);
        let tile = Tile {
            left: left[row * depth..].as_ptr(),
            row_stride: depth,
            depth_stride: 1,
            right: right.as_ptr(),
            right_stride: width,
            depth,
            out: out[row * (width + 1)..].as_mut_ptr(),
            out_stride: width + 1,
            start: match start {
                "zero" => TileStart::Zero,
                "out" => TileStart::Out,
                _ => TileStart::Bias(bias.as_ptr()),
            },
        };
        // SAFETY: all arrays have the rows, depth and columns; the caller says that `T` may be used.
        unsafe { run_on::<T>(&tile, count, width) };
        row += count;
    }
    SHAPED.set(0);
    // SAFETY: as above.
    unsafe { T::release() };
    out
}

#[test]
fn sums_of_low_and_of_high_halves_start_at_zero_and_meet_at_the_end() {
    let (big, one) = (f32::from(1u16 << 15) * 512.0, 1.0f32);
    let bits = |x: f32| x.to_bits() >> 16;
    // 2^24 + 1 is 2^24 in f32, so that each of the ones vanishes where a sum is large already.
    let mut left = [bits(one) | bits(one) << 16; STEP];
    left[0] = bits(big) | bits(one) << 16;
    let right = [bits(one) | bits(one) << 16; STEP * COLUMNS];
    let mut out = [1.0f32; COLUMNS];
    let tile = Tile {
        left: left.as_ptr(),
        row_stride: STEP,
        depth_stride: 1,
        right: right.as_ptr(),
        right_stride: COLUMNS,
        depth: STEP,
        out: out.as_mut_ptr(),
        out_stride: COLUMNS,
        start: TileStart::Out,
    };
    // SAFETY: the arrays are one tile each, and the model needs no CPU.
    unsafe { run_on::<Model>(&tile, 1, COLUMNS) };
    // Low halves: 2^24, fifteen ones lost. High halves: 16. Then the 1 that was there, lost.
    assert_eq!(out, [big + 16.0; COLUMNS]);
}

#[test]
#[should_panic(expected = "#UD: no shapes")]
fn the_model_refuses_tiles_without_shapes() {
    model::with(|state| state.zero(0));
}

#[test]
#[should_panic(expected = "#UD: depths")]
fn the_model_refuses_shapes_that_do_not_fit() {
    let mut shapes = Shapes::of_rows(HEIGHT);
    shapes.0[16 + 2 * LEFT] = 60;
    model::with(|state| {
        state.configure(&shapes.0);
        state.multiply(0, LEFT, RIGHT);
    });
}

/// The instructions themselves, executed by the CPU if it has them, else by a handler of the signal that it
/// raises, which decodes them as the manual has it and lets the model execute them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod instructions {
    use nix::libc;

    use super::super::hardware::Hardware;
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Instruction {
        Configure(Address),
        Release,
        Zero(usize),
        Load(usize, Address),
        Store(usize, Address),
        Multiply(usize, usize, usize),
    }

    /// `[base + index * scale + offset]`, registers by their numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Address {
        base: usize,
        index: Option<usize>,
        scale: usize,
        offset: i32,
    }

    /// Decodes one instruction; answers its length too. Nothing for any that the kernel does not use.
    fn decode(code: &[u8]) -> Option<(Instruction, usize)> {
        let &[0xC4, first, second, opcode, modrm, ..] = code else {
            return None;
        };
        // Of the three-byte VEX prefix: inverted R, X, B and the map 0F 38; W, inverted vvvv, L and pp.
        let extend = |bit: u8| usize::from(first >> bit & 1 ^ 1) << 3;
        let (r, x, b) = (extend(7), extend(6), extend(5));
        let vvvv = usize::from(second >> 3 & 15 ^ 15);
        if first & 0x1F != 2 || second & 0x84 != 0 {
            return None;
        }
        let pp = second & 3;
        let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7) + r, modrm & 7);
        let address = || {
            let mut length = 5;
            let (mut base, mut index, mut scale) = (usize::from(rm) + b, None, 1);
            if rm == 4 {
                let sib = *code.get(length)?;
                length += 1;
                base = usize::from(sib & 7) + b;
                scale = 1 << (sib >> 6);
                // Register 4 as an index means none.
                index = Some(usize::from(sib >> 3 & 7) + x).filter(|&index| index != 4);
            }
            let offset = match mode {
                // Without a base, or relative to the instruction: not used.
                0 if base & 7 == 5 => return None,
                0 => 0,
                1 => {
                    let byte = *code.get(length)?;
                    length += 1;
                    i32::from(byte.cast_signed())
                }
                _ => {
                    let bytes = code.get(length..length + 4)?;
                    length += 4;
                    i32::from_le_bytes(bytes.try_into().ok()?)
                }
            };
            let address = Address {
                base,
                index,
                scale,
                offset,
            };
            Some((address, length))
        };
        match (opcode, pp, mode) {
            (0x49, 0, 3) if modrm == 0xC0 => Some((Instruction::Release, 5)),
            (0x49, 0, 0..3) if reg == 0 => {
                address().map(|(at, length)| (Instruction::Configure(at), length))
            }
            (0x49, 3, 3) if rm == 0 => Some((Instruction::Zero(reg), 5)),
            (0x4B, 3, 0..3) if rm == 4 => {
                address().map(|(at, length)| (Instruction::Load(reg, at), length))
            }
            (0x4B, 2, 0..3) if rm == 4 => {
                address().map(|(at, length)| (Instruction::Store(reg, at), length))
            }
            (0x5C, 2, 3) => {
                let sources = (usize::from(rm) + b, vvvv);
                Some((Instruction::Multiply(reg, sources.0, sources.1), 5))
            }
            _ => None,
        }
    }

    /// A register's place in the context that a signal handler is given.
    const REGISTERS: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];

    extern "C" fn on_illegal(
        _: libc::c_int,
        _: *mut libc::siginfo_t,
        context: *mut libc::ucontext_t,
    ) {
        // SAFETY: the system hands the handler its thread's context.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        let register = |place: i32| registers[place.cast_unsigned() as usize];
        let at = register(libc::REG_RIP) as *const u8;
        let mut code = [0u8; 12];
        // SAFETY: the instruction is executable and so readable; what follows it too, as no function ends
        // with one of these.
        unsafe { at.copy_to_nonoverlapping(code.as_mut_ptr(), code.len()) };
        let Some((instruction, length)) = decode(&code) else {
            // SAFETY: restores what was there before, so that the instruction ends the process.
            unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
            return;
        };
        let index = |at: Address| at.index.map_or(0, |i| register(REGISTERS[i]) as usize);
        let start = |at: Address| {
            let base = register(REGISTERS[at.base]) as *mut u8;
            base.wrapping_offset(at.offset as isize)
        };
        // SAFETY: as for the instruction itself.
        model::with(|state| unsafe {
            match instruction {
                Instruction::Configure(at) => {
                    state.configure(&*start(at).wrapping_add(index(at) * at.scale).cast());
                }
                Instruction::Release => state.release(),
                Instruction::Zero(tile) => state.zero(tile),
                Instruction::Load(tile, at) => state.load(tile, start(at), index(at) * at.scale),
                Instruction::Store(tile, at) => state.store(tile, start(at), index(at) * at.scale),
                Instruction::Multiply(to, left, right) => state.multiply(to, left, right),
            }
        });
        registers[libc::REG_RIP.cast_unsigned() as usize] += length as i64;
    }

    fn catch_illegal_instructions() {
        // SAFETY: the structure is valid when zero; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = libc::SA_SIGINFO;
            action.sa_sigaction = on_illegal as *const () as usize;
            assert_eq!(
                libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()),
                0
            );
        }
    }

    #[test]
    fn they_do_what_the_model_does() {
        if Cpu::best().level() < Level::Amx {
            catch_illegal_instructions();
        }
        for rows in [1, 15, 16, 17, 32, 53] {
            for (depth, width) in [(16, 16), (64, 32), (32, 48)] {
                for start in ["zero", "out", "bias"] {
                    let real = product::<Hardware>(rows, depth, width, start);
                    let modelled = product::<Model>(rows, depth, width, start);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    let case = format!("{rows} × {depth} × {width}, {start}");
                    assert_eq!(bits(&real), bits(&modelled), "{case}");
                    assert!(real.iter().any(|&x| x != 0.0), "{case}");
                }
            }
        }
    }

    /// Bytes from two assemblers that agree (GNU's and LLVM's).
    #[test]
    fn the_decoder_knows_them() {
        let at = |base, index, scale, offset| Address {
            base,
            index,
            scale,
            offset,
        };
        use Instruction::*;
        for (code, expected) in [
            // ldtilecfg [rax], [r12], [rsp + 64]
            ("c4e2784900", Some(Configure(at(0, None, 1, 0)))),
            ("c4c278490424", Some(Configure(at(12, None, 1, 0)))),
            ("c4e27849442440", Some(Configure(at(4, None, 1, 64)))),
            ("c4e27849c0", Some(Release)),
            ("c4e27b49e8", Some(Zero(5))),
            // tileloadd tmm6, [rdi + rsi]; tmm7, [r13 + r9]; tmm0, [rbx + r15 * 4 - 128]; tmm3, [r8 + rbp * 2 + 4096]
            ("c4e27b4b3437", Some(Load(6, at(7, Some(6), 1, 0)))),
            ("c4827b4b7c0d00", Some(Load(7, at(13, Some(9), 1, 0)))),
            ("c4a27b4b44bb80", Some(Load(0, at(3, Some(15), 4, -128)))),
            (
                "c4c27b4b9c6800100000",
                Some(Load(3, at(8, Some(5), 2, 4096))),
            ),
            // tilestored [rcx + rdx], tmm4; [r12 + rax + 16], tmm1
            ("c4e27a4b2411", Some(Store(4, at(1, Some(2), 1, 0)))),
            ("c4c27a4b4c0410", Some(Store(1, at(12, Some(0), 1, 16)))),
            // tdpbf16ps tmm0, tmm6, tmm7; tmm5, tmm7, tmm6; tmm1, tmm2, tmm3
            ("c4e2425cc6", Some(Multiply(0, 6, 7))),
            ("c4e24a5cef", Some(Multiply(5, 7, 6))),
            ("c4e2625cca", Some(Multiply(1, 2, 3))),
            // vdpbf16ps zmm0, zmm1, zmm2; tdpbssd tmm1, tmm2, tmm3; sttilecfg [rax]; tileloaddt1 tmm0, [rdi + rsi]
            ("62f2764852c2", None),
            ("c4e2635eca", None),
            ("c4e2794900", None),
            ("c4e2794b0437", None),
        ] {
            let mut bytes: Vec<u8> = (0..code.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&code[i..i + 2], 16).unwrap())
                .collect();
            let length = bytes.len();
            bytes.extend([0x90; 7]);
            assert_eq!(decode(&bytes), expected.map(|it| (it, length)), "{code}");
        }
    }
}
