// libcuda.so without a card: what the Rust crate `cudarc` calls of the CUDA driver, over host memory and
// the kernels compiled into this library. The image of a module is ignored; kernels are found by name.
//
// Device addresses are host addresses, so a host that dereferences one is not caught here.

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "driver.hpp"
#include "emulator.hpp"

using namespace fake;

bool fake::initialised = false;

namespace {

CUresult broken_by(emulator::Wrong wrong) {
    switch (wrong) {
        case emulator::Wrong::IllegalAddress:
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        case emulator::Wrong::Misaligned:
            return CUDA_ERROR_MISALIGNED_ADDRESS;
        default:
            return CUDA_ERROR_LAUNCH_FAILED;
    }
}

/// A launch's arguments, which the caller's memory does not outlive.
struct Arguments {
    std::vector<unsigned char> bytes;
    std::vector<void*> pointers;

    Arguments(const emulator::Kernel& kernel, void* const* from) {
        constexpr size_t ALIGNMENT = 16;
        size_t total = 0;
        for (size_t i = 0; i < kernel.argument_count; ++i) {
            total += (kernel.argument_bytes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
        bytes.resize(total);
        unsigned char* next = bytes.data();
        for (size_t i = 0; i < kernel.argument_count; ++i) {
            memcpy(next, from[i], kernel.argument_bytes[i]);
            pointers.push_back(next);
            next += (kernel.argument_bytes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
    }
};

void run_kernel(Device& device, const emulator::Kernel& kernel, const emulator::Geometry& geometry,
                const Arguments& arguments) {
    const emulator::Outcome outcome = emulator::run(kernel, geometry, arguments.pointers.data());
    if (outcome.wrong != emulator::Wrong::Nothing) {
        device.fault(broken_by(outcome.wrong), outcome.message);
        return;
    }
    for (size_t i = 0; i < kernel.argument_count; ++i) {
        if (kernel.argument_bytes[i] == sizeof(uint64_t)) {
            uint64_t address;
            memcpy(&address, arguments.pointers[i], sizeof address);
            check_guards_at(address, kernel.name);
        }
    }
}

Function* function_of(CUfunction handle) { return reinterpret_cast<Function*>(handle); }

bool fits(const Device& device, const emulator::Geometry& geometry, const Function& function) {
    const size_t shared_max = std::min(static_cast<size_t>(function.dynamic_shared_bytes_max),
                                       device.shared_bytes_max());
    if (emulator::a_card_takes(geometry) && geometry.dynamic_shared_bytes <= shared_max) {
        return true;
    }
    const dim3 grid = geometry.grid, block = geometry.block;
    complain("%s: no launch with grid (%u, %u, %u), block (%u, %u, %u) and %zu bytes of shared memory, of which "
             "%zu are allowed",
             function.kernel->name, grid.x, grid.y, grid.z, block.x, block.y, block.z,
             geometry.dynamic_shared_bytes, shared_max);
    return false;
}

}  // namespace

extern "C" {

// --- Start, errors ---

CUresult cuInit(unsigned flags) {
    const std::lock_guard<std::mutex> lock(one_call);
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    initialised = !devices().empty();
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

static const char* name_of(CUresult error) {
    switch (error) {
#define NAME(e) \
    case e:     \
        return #e
        NAME(CUDA_SUCCESS);
        NAME(CUDA_ERROR_INVALID_VALUE);
        NAME(CUDA_ERROR_OUT_OF_MEMORY);
        NAME(CUDA_ERROR_NOT_INITIALIZED);
        NAME(CUDA_ERROR_NO_DEVICE);
        NAME(CUDA_ERROR_INVALID_DEVICE);
        NAME(CUDA_ERROR_INVALID_CONTEXT);
        NAME(CUDA_ERROR_INVALID_HANDLE);
        NAME(CUDA_ERROR_NOT_FOUND);
        NAME(CUDA_ERROR_NOT_READY);
        NAME(CUDA_ERROR_ILLEGAL_ADDRESS);
        NAME(CUDA_ERROR_MISALIGNED_ADDRESS);
        NAME(CUDA_ERROR_LAUNCH_FAILED);
        NAME(CUDA_ERROR_NOT_SUPPORTED);
#undef NAME
        default:
            return nullptr;
    }
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    *text = name_of(error);
    return *text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_OUT_OF_MEMORY:
            *text = "out of memory";
            return CUDA_SUCCESS;
        case CUDA_ERROR_ILLEGAL_ADDRESS:
            *text = "an illegal memory access was encountered";
            return CUDA_SUCCESS;
        default:
            return cuGetErrorName(error, text);
    }
}

// --- Devices and contexts ---

CUresult cuDeviceGetCount(int* count) {
    const std::lock_guard<std::mutex> lock(one_call);
    *count = static_cast<int>(devices().size());
    return initialised ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return with_device(ordinal, [&](Device& found) {
        *device = found.ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetName(char* name, int bytes, CUdevice ordinal) {
    return with_device(ordinal, [&](Device&) {
        snprintf(name, static_cast<size_t>(bytes), "Emulated GPU");
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        memcpy(uuid->bytes, "emulated GPU \0\0", 16);
        uuid->bytes[15] = static_cast<char>(device.ordinal);
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        *bytes = device.memory_bytes;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        const auto shared = static_cast<int>(device.shared_bytes_max());
        const std::map<int, int> values = {
            {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, 0x7FFFFFFF},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65535},
            {CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65535},
            {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10},
            {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
            {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, 65536},
            {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1000000},
            // Few, so that grids made to fill a card stay small.
            {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 4},
            {CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1},
            {CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 1000000},
            {CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 4096},
            {CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 32 << 20},
            {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, 2048},
            {CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 2},
            {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
            {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device.major},
            {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device.minor},
            {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, shared + 1024},
            {CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, 65536},
            {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, shared},
            {CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, 32},
            {CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1},
        };
        const auto found = values.find(attribute);
        *value = found == values.end() ? 0 : found->second;
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        device.contexts += 1;
        *context = reinterpret_cast<CUcontext>(&device);
        return CUDA_SUCCESS;
    });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        if (device.contexts == 0) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        device.contexts -= 1;
        if (device.contexts == 0) {
            device.run_all();
            release_all(device);
            device.streams.clear();
            device.events.clear();
        }
        return device.broken;
    });
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = reinterpret_cast<CUcontext>(current_device());
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    set_current_device(reinterpret_cast<Device*>(context));
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice* ordinal) {
    return on_device([&](Device& device) {
        *ordinal = device.ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSynchronize() {
    return on_device([&](Device& device) {
        device.run_all();
        check_guards(device);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetFlags(unsigned) {
    return on_device([](Device&) { return CUDA_SUCCESS; });
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return on_device([&](Device&) {
        *least = 0;
        *greatest = -5;
        return CUDA_SUCCESS;
    });
}

// --- Modules and kernels ---

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    return on_device([&](Device&) {
        static char the_module;
        *module = reinterpret_cast<CUmodule>(&the_module);
        return image == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    });
}

CUresult cuModuleUnload(CUmodule) {
    return on_device([](Device&) { return CUDA_SUCCESS; });
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
    return on_device([&](Device& device) {
        const emulator::Kernel* const kernel = emulator::find_kernel(name);
        if (kernel == nullptr) {
            complain("no kernel is called %s: is EXPORT_KERNEL(%s) missing?", name, name);
            return CUDA_ERROR_NOT_FOUND;
        }
        static std::map<std::pair<int, const emulator::Kernel*>, Function> functions;
        Function& found = functions[{device.ordinal, kernel}];
        found.kernel = kernel;
        *function = reinterpret_cast<CUfunction>(&found);
        return CUDA_SUCCESS;
    });
}

CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule, const char*) { return CUDA_ERROR_NOT_FOUND; }

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
    return on_device([&](Device& device) {
        switch (attribute) {
            case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
                *value = 1024;
                break;
            case CU_FUNC_ATTRIBUTE_NUM_REGS:
                *value = 32;
                break;
            case CU_FUNC_ATTRIBUTE_PTX_VERSION:
            case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
                *value = 10 * device.major + device.minor;
                break;
            case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
                *value = function_of(function)->dynamic_shared_bytes_max;
                break;
            default:
                *value = 0;
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    return on_device([&](Device& device) {
        if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
            return CUDA_SUCCESS;
        }
        if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
            static_cast<size_t>(value) > device.shared_bytes_max()) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        function_of(function)->dynamic_shared_bytes_max = value;
        return CUDA_SUCCESS;
    });
}

CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) {
    return on_device([](Device&) { return CUDA_SUCCESS; });
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream_handle,
                        void** parameters, void** extra) {
    // The launch that faults still answers that it was issued, as launches are not waited for.
    bool faults = false;
    const CUresult result = on_stream(stream_handle, [&](Device& device, const std::shared_ptr<Stream>& stream) {
        Function& function = *function_of(handle);
        const emulator::Kernel& kernel = *function.kernel;
        const emulator::Geometry geometry{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes};
        if (!fits(device, geometry, function)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (extra != nullptr || (parameters == nullptr && kernel.argument_count > 0)) {
            complain("%s: its arguments must come by `kernelParams`", kernel.name);
            return CUDA_ERROR_INVALID_VALUE;
        }
        function.launches += 1;
        const auto arguments = std::make_shared<Arguments>(kernel, parameters);
        issue(stream, [=, &device, &kernel] { run_kernel(device, kernel, geometry, *arguments); });
        if (is_to_fault(kernel.name, function.launches)) {
            finish(stream);
            device.fault(CUDA_ERROR_ILLEGAL_ADDRESS, std::string(kernel.name) + " faults, as asked for");
            faults = true;
        }
        return CUDA_SUCCESS;
    });
    return faults ? CUDA_SUCCESS : result;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int threads, size_t shared_bytes) {
    return on_device([&](Device& device) {
        if (threads <= 0 || threads > 1024) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        const size_t warps = (static_cast<size_t>(threads) + 31) / 32;
        // Each block costs 1 KiB of shared memory beyond its own.
        const size_t by_memory = (device.shared_bytes_max() + 1024) / (shared_bytes + 1024);
        *blocks = static_cast<int>(std::min({size_t{32}, 64 / warps, by_memory}));
        return CUDA_SUCCESS;
    });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads,
                                                              size_t shared_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}

CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction, int blocks, int) {
    return on_device([&](Device& device) {
        if (blocks <= 0) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        *bytes = (device.shared_bytes_max() + 1024) / static_cast<size_t>(blocks) - 1024;
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
