/* A libnvidia-ml.so.1 for machines without a GPU: the functions that chandler calls, with the types of NVIDIA's nvml.h
 * (https://docs.nvidia.com/deploy/nvml-api), on cards that the environment describes:
 *
 *   FAKE_GPU_<n>            uuid,name,MiB in all,MiB used,watts,percent
 *   FAKE_GPU_<n>_MIG_<m>    the same, of an instance of that GPU, which then is divided
 *   FAKE_GPU_LOST           uuid of a card that does not answer
 *   FAKE_GPU_HIDES          set if processes are not told apart, as in some containers
 *
 * A process that asks holds 512 MiB. Energy is power times the machine's uptime. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MAX_CARDS = 16, MAX_INSTANCES = 7 };

typedef int nvmlReturn_t;

typedef struct card {
    char uuid[96], name[96];
    unsigned long long total_mib, used_mib;
    unsigned watts, percent;
    struct card *parent;
    struct card *instances[MAX_INSTANCES];
} *nvmlDevice_t;

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } nvmlMemory_v2_t;
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

static struct card *cards[MAX_CARDS];
static unsigned count;

static struct card *describe(const char *variable) {
    const char *text = getenv(variable);
    if (!text) return NULL;
    struct card *card = calloc(1, sizeof *card);
    int read = sscanf(text, "%95[^,],%95[^,],%llu,%llu,%u,%u", card->uuid, card->name, &card->total_mib, &card->used_mib,
                      &card->watts, &card->percent);
    if (read != 6) {
        fprintf(stderr, "%s is not uuid,name,MiB,MiB,watts,percent\n", variable);
        abort();
    }
    return card;
}

static int is_lost(nvmlDevice_t card) {
    const char *lost = getenv("FAKE_GPU_LOST");
    return lost && !strcmp(lost, card->uuid);
}

nvmlReturn_t nvmlInit_v2(void) {
    char variable[64];
    for (count = 0; count < MAX_CARDS; count++) {
        snprintf(variable, sizeof variable, "FAKE_GPU_%u", count);
        if (!(cards[count] = describe(variable))) break;
        for (int m = 0; m < MAX_INSTANCES; m++) {
            snprintf(variable, sizeof variable, "FAKE_GPU_%u_MIG_%d", count, m);
            struct card *instance = describe(variable);
            if (instance) instance->parent = cards[count];
            cards[count]->instances[m] = instance;
        }
    }
    return SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "580.00.00");
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *answer) {
    *answer = count;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (index >= count) return INVALID_ARGUMENT;
    *device = cards[index];
    return is_lost(*device) ? GPU_IS_LOST : SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (unsigned n = 0; n < count; n++) {
        *device = cards[n];
        if (!strcmp(uuid, cards[n]->uuid)) return is_lost(*device) ? GPU_IS_LOST : SUCCESS;
        for (int m = 0; m < MAX_INSTANCES; m++) {
            *device = cards[n]->instances[m];
            if (*device && !strcmp(uuid, (*device)->uuid)) return SUCCESS;
        }
    }
    return NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) {
    snprintf(uuid, length, "%s", device->uuid);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
    snprintf(name, length, "%s", device->name);
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    *current = *pending = 0;
    for (int m = 0; m < MAX_INSTANCES; m++) *current |= device->instances[m] != NULL;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *answer) {
    (void)device;
    *answer = MAX_INSTANCES;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *instance) {
    if (index >= MAX_INSTANCES) return INVALID_ARGUMENT;
    *instance = device->instances[index];
    return *instance ? SUCCESS : NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    memory->total = device->total_mib << 20;
    memory->used = device->used_mib << 20;
    memory->free = memory->total - memory->used;
    memory->reserved = 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    if (device->parent) return NOT_SUPPORTED;
    rates->gpu = device->percent;
    rates->memory = 0;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *milliwatts) {
    if (device->parent) return NOT_SUPPORTED;
    *milliwatts = device->watts * 1000;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    if (device->parent) return NOT_SUPPORTED;
    struct timespec up;
    clock_gettime(CLOCK_MONOTONIC, &up);
    *millijoules = (up.tv_sec * 1000ull + up.tv_nsec / 1000000) * device->watts;
    return SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *size, nvmlProcessInfo_t *processes) {
    (void)device;
    unsigned room = *size;
    *size = getenv("FAKE_GPU_HIDES") ? 0 : 1;
    if (room < *size) return INSUFFICIENT_SIZE;
    if (*size) {
        processes[0].pid = getpid();
        processes[0].usedGpuMemory = 512ull << 20;
        processes[0].gpuInstanceId = processes[0].computeInstanceId = ~0u;
    }
    return SUCCESS;
}
