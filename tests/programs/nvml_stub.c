/* A driver's library for tests: answers the calls that pynvml makes from a file that the test maps and writes.
   Compiled by tests/nvml_stub.py, whose ctypes structures must match the ones here. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMED_OUT = 10, NO_FUNCTION = 13 };
enum { DEVICES = 8, PROCESSES = 16, SAMPLES = 16, XIDS = 4 };

struct process { uint64_t memory, t_us; uint32_t pid, sm, transfer; };
struct sample { uint64_t t_us; uint64_t value; };
struct device {
    char uuid[96], name[96];
    uint64_t memory_total, memory_used, energy_mj, throttle, ecc_corrected, ecc_uncorrected;
    uint32_t error, utilization, transfer, power_mw, limit_mw, temperature, sm_clock, memory_clock;
    uint32_t is_part_of, gpu_instance, compute_instance, mig_mode;
    uint32_t sample_count, process_count, xid_count, grows, listed;
    struct sample samples[SAMPLES];
    struct process processes[PROCESSES];
    uint32_t running[PROCESSES];
    uint64_t xids[XIDS];
};
struct state {
    uint32_t init_error, count, inits, shutdowns, count_error;
    char refused[1024], missing[1024];
    struct device devices[DEVICES];
};
static struct state *state;

static int given(const char *names, const char *name) {
    const char *found = strstr(names, name);
    return found && (found[strlen(name)] == ',');
}
/* What every call on a device answers first: the device's error, then what is switched off. */
static int refuses(struct device *d, const char *name) {
    if (given(state->missing, name)) return NO_FUNCTION;
    if (d->error) return (int)d->error;
    return given(state->refused, name) ? NOT_SUPPORTED : OK;
}
#define ANSWER(...) do { int r = refuses(d, __func__); if (r) return r; __VA_ARGS__; return OK; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    const char *path = getenv("NVML_STUB_STATE");
    if (!state && path) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        void *at = fd < 0 ? MAP_FAILED : mmap(0, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED) state = at;
        if (fd >= 0) close(fd);
    }
    if (!state) return 9;
    if (!state->init_error) state->inits++;
    return (int)state->init_error;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
/* The mapping is given up, so that the next test's file is mapped by the next start. */
int nvmlShutdown(void) {
    if (!state) return 1;
    state->shutdowns++;
    munmap(state, sizeof *state);
    state = 0;
    return OK;
}
const char *nvmlErrorString(int error) { (void)error; return "an error of the stub"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = state->count; return (int)state->count_error; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, struct device **d) {
    unsigned seen = 0;
    for (int k = 0; k < DEVICES; k++) {
        if (!state->devices[k].listed || state->devices[k].is_part_of) continue;
        if (seen++ == i) { *d = &state->devices[k]; return (int)(*d)->error; }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(struct device *d, char *out, unsigned n) { ANSWER(strncpy(out, d->uuid, n)); }
int nvmlDeviceGetName(struct device *d, char *out, unsigned n) { ANSWER(strncpy(out, d->name, n)); }
int nvmlDeviceGetMigMode(struct device *d, unsigned *now, unsigned *pending) { ANSWER(*now = *pending = d->mig_mode); }
int nvmlDeviceGetMaxMigDeviceCount(struct device *d, unsigned *n) { ANSWER(*n = d->mig_mode ? 7 : 0); }
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *d, unsigned i, struct device **part) {
    int r = refuses(d, __func__);
    if (r) return r;
    /* Every other place is empty, as after an instance was taken away. */
    unsigned place = 0;
    for (int k = 0; k < DEVICES; k++) {
        struct device *other = &state->devices[k];
        if (!other->listed || other->is_part_of != (uint32_t)(d - state->devices) + 1) continue;
        if (2 * place++ + 1 == i) { *part = other; return OK; }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetGpuInstanceId(struct device *d, unsigned *id) { ANSWER(*id = d->gpu_instance); }
int nvmlDeviceGetComputeInstanceId(struct device *d, unsigned *id) { ANSWER(*id = d->compute_instance); }
int nvmlDeviceGetMemoryInfo(struct device *d, uint64_t *m) {
    ANSWER(m[0] = d->memory_total; m[2] = d->memory_used + 1000; m[1] = m[0] - m[2]);
}
int nvmlDeviceGetMemoryInfo_v2(struct device *d, uint64_t *m) {
    ANSWER(m[1] = d->memory_total; m[2] = 1000; m[4] = d->memory_used; m[3] = m[1] - m[4]);
}
int nvmlDeviceGetUtilizationRates(struct device *d, uint32_t *u) {
    if (d->is_part_of) return NOT_SUPPORTED;
    ANSWER(u[0] = d->utilization; u[1] = d->transfer);
}
int nvmlDeviceGetPowerUsage(struct device *d, unsigned *mw) { ANSWER(*mw = d->power_mw); }
int nvmlDeviceGetEnforcedPowerLimit(struct device *d, unsigned *mw) { ANSWER(*mw = d->limit_mw); }
int nvmlDeviceGetTotalEnergyConsumption(struct device *d, uint64_t *mj) { ANSWER(*mj = d->energy_mj); }
int nvmlDeviceGetTemperature(struct device *d, unsigned sensor, unsigned *c) { (void)sensor; ANSWER(*c = d->temperature); }
int nvmlDeviceGetClockInfo(struct device *d, unsigned which, unsigned *mhz) {
    ANSWER(*mhz = which == 2 ? d->memory_clock : d->sm_clock);
}
int nvmlDeviceGetCurrentClocksEventReasons(struct device *d, uint64_t *bits) { ANSWER(*bits = d->throttle); }
int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *d, uint64_t *bits) { ANSWER(*bits = d->throttle); }
int nvmlDeviceGetTotalEccErrors(struct device *d, unsigned kind, unsigned counter, uint64_t *n) {
    (void)counter;
    ANSWER(*n = kind ? d->ecc_uncorrected : d->ecc_corrected);
}
int nvmlDeviceGetSamples(struct device *d, unsigned kind, uint64_t since, unsigned *type, unsigned *n, struct sample *out) {
    (void)kind;
    int r = d->is_part_of ? NOT_SUPPORTED : refuses(d, __func__);
    if (r) return r;
    unsigned found = 0;
    *type = 1;
    for (unsigned k = 0; k < d->sample_count; k++) {
        if (d->samples[k].t_us < since) continue; /* some drivers give the last one again */
        if (out) out[found] = d->samples[k];
        found++;
    }
    *n = found;
    return found ? OK : NOT_FOUND;
}
struct utilization { uint32_t pid, padding; uint64_t t_us; uint32_t sm, transfer, enc, dec; };
int nvmlDeviceGetProcessUtilization(struct device *d, struct utilization *out, unsigned *n, uint64_t since) {
    int r = d->is_part_of || d->mig_mode ? NOT_SUPPORTED : refuses(d, __func__);
    if (r) return r;
    unsigned found = 0;
    for (unsigned k = 0; k < d->process_count; k++) {
        struct process *p = &d->processes[k];
        if (p->t_us < since) continue;
        if (out && found < *n) out[found] = (struct utilization){p->pid, 0, p->t_us, p->sm, p->transfer, 0, 0};
        found++;
    }
    if (!out) { *n = found; return found ? TOO_SMALL : OK; }
    if (d->grows) return TOO_SMALL;
    *n = found;
    return OK;
}
struct running { uint32_t pid, padding; uint64_t memory; uint32_t gi, ci; };
static int list(struct device *d, const char *name, unsigned *n, struct running *out) {
    int r = refuses(d, name);
    if (r) return r;
    unsigned found = 0;
    for (unsigned k = 0; k < d->process_count; k++) {
        if (!d->running[k]) continue;
        if (out) out[found] = (struct running){d->processes[k].pid, 0, d->processes[k].memory, 0, 0};
        found++;
    }
    /* Between pynvml's two calls the last process may end. */
    *n = out && d->grows && found ? found - 1 : found;
    return out || !found ? OK : TOO_SMALL;
}
int nvmlDeviceGetComputeRunningProcesses_v3(struct device *d, unsigned *n, struct running *out) { return list(d, __func__, n, out); }
int nvmlDeviceGetComputeRunningProcesses_v2(struct device *d, unsigned *n, struct running *out) { return list(d, __func__, n, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(struct device *d, unsigned *n, void *out) { (void)out; *n = 0; return refuses(d, __func__); }
int nvmlEventSetCreate(void **set) { *set = state; return given(state->refused, __func__) ? NOT_SUPPORTED : OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(struct device *d, uint64_t kinds, void *set) { (void)kinds; (void)set; ANSWER((void)0); }
struct event { struct device *device; uint64_t kind, data; uint32_t gi, ci; };
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned ms) {
    (void)set; (void)ms;
    for (int k = 0; k < DEVICES; k++) {
        struct device *d = &state->devices[k];
        if (!d->xid_count) continue;
        d->xid_count--;
        *out = (struct event){d, 8, d->xids[d->xid_count], 0, 0};
        return OK;
    }
    return TIMED_OUT;
}
