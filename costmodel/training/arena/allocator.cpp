// An allocator for PyTorch's CPU tensors that puts every block of a step where a plan says.
//
// c10 asks it for each tensor's memory. Within a step (`arena_enter` to `arena_leave`), on the thread that entered:
//
//   rehearsal   blocks are mapped one by one, so that freed memory goes back to the system at once, and are logged,
//               small ones, too
//   replay      the i-th block goes to its planned place in the region; one that the plan does not expect, or whose
//               place is still taken, goes to the smallest free gap of the region that holds it, or is mapped alone
//
// A place is given only if no live block overlaps it: whatever a plan says, no two live blocks share memory. Blocks
// below `small` bytes, and those of other threads, come from the allocator that was there before. Outside of steps
// blocks of `direct` bytes and more are mapped one by one, too.
//
// In the guard mode every block is followed by guard bytes, and free memory of the region holds a pattern: a write past
// the end of a block, or into one that was freed, is counted as damage.
//
// Built by compiled.py on first use; links libc10 alone. Source: c10/core/Allocator.h, c10/core/CPUAllocator.h.
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

using c10::DataPtr;

enum Mode { OUTSIDE = 0, REHEARSAL = 1, REPLAY = 2 };
enum Count { PLANNED, UNEXPECTED, OCCUPIED, IN_GAP, MAPPED, FOREIGN, DAMAGED, COUNTS };
const size_t PAGE = sysconf(_SC_PAGESIZE);
constexpr size_t HUGE = size_t(2) << 20, ALIGNMENT = 64, GUARD = 64;
constexpr unsigned char FREED = 0xDD, FENCE = 0xFD;
constexpr int64_t NOWHERE = -1;  // the plan's place of a block that outlives its step

struct Plan {
  std::vector<int64_t> sizes, places;
};

struct State {
  std::mutex mutex;  // not a recursive one: a forked child could not unlock that, since its thread has another number
  c10::Allocator* before = nullptr;
  Mode mode = OUTSIDE;
  bool tight = false, guard = false, huge = false, logs = false;
  size_t small = 4096, direct = 65536, lookahead = 64;
  char* region = nullptr;
  size_t reserved = 0, size = 0;
  std::map<size_t, size_t> live;              // in the region: place -> bytes
  std::unordered_map<void*, size_t> mapped;   // blocks mapped one by one
  std::unordered_map<void*, size_t> asked;    // in guard mode: bytes asked for
  std::vector<Plan> plans;
  const Plan* plan = nullptr;
  size_t cursor = 0;
  std::vector<int64_t> log;                   // +bytes of an allocation, -(its number + 1) of its free
  std::unordered_map<void*, int64_t> number;
  int64_t logged = 0;
  int64_t counts[COUNTS] = {};
  size_t used = 0, mapped_bytes = 0, most = 0;  // bytes now, and the most since they were asked for
} S;

thread_local bool owner = false;

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

size_t footprint_of(size_t n) { return up(n, ALIGNMENT) + (S.guard ? GUARD : 0); }

bool is_free(size_t place, size_t n) {
  if (place + n > S.size) return false;
  auto next = S.live.lower_bound(place);
  if (next != S.live.end() && next->first < place + n) return false;
  return next == S.live.begin() || std::prev(next)->first + std::prev(next)->second <= place;
}

bool in_region(void* p) { return S.region && p >= S.region && p < S.region + S.size; }

void note_most() { S.most = std::max(S.most, S.used + S.mapped_bytes); }

void check(const char* p, size_t n, unsigned char value) {
  for (size_t i = 0; i < n; i++)
    if ((unsigned char)p[i] != value) { S.counts[DAMAGED]++; return; }
}

void* take(size_t place, size_t asked) {
  const size_t n = footprint_of(asked);
  S.live[place] = n;
  S.used += n;
  note_most();
  char* p = S.region + place;
  if (S.guard) {
    check(p, n, FREED);
    memset(p + asked, FENCE, n - asked);
    S.asked[p] = asked;
  }
  return p;
}

void* smallest_gap(size_t asked) {
  const size_t n = footprint_of(asked);
  size_t at = 0, best = SIZE_MAX, place = 0;
  auto look = [&](size_t from, size_t to) {
    if (to >= from + n && to - from < best) { best = to - from; place = from; }
  };
  for (auto& block : S.live) {
    look(at, block.first);
    at = block.first + block.second;
  }
  look(at, S.size);
  if (best == SIZE_MAX) return nullptr;
  S.counts[IN_GAP]++;
  return take(place, asked);
}

void* planned(size_t n) {
  const Plan& plan = *S.plan;
  const size_t end = std::min(plan.sizes.size(), S.cursor + S.lookahead);
  size_t at = S.cursor;
  while (at < end && plan.sizes[at] != (int64_t)n) at++;
  if (at == end) {
    S.counts[UNEXPECTED]++;
    return smallest_gap(n);
  }
  S.counts[UNEXPECTED] += at - S.cursor;  // what the plan expected, and did not come
  S.cursor = at + 1;
  const int64_t place = plan.places[at];
  if (place == NOWHERE) return nullptr;
  if (is_free(place, footprint_of(n))) {
    S.counts[PLANNED]++;
    return take(place, n);
  }
  S.counts[OCCUPIED]++;
  return smallest_gap(n);
}

void* map_alone(size_t n) {
  const size_t bytes = up(n, PAGE);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK(p != MAP_FAILED, "the system gives no ", n, " bytes of memory");
  S.mapped[p] = bytes;
  S.mapped_bytes += bytes;
  S.counts[MAPPED]++;
  note_most();
  return p;
}

void release(void* p);

struct PlannedArena final : c10::Allocator {
  DataPtr allocate(size_t n) override {
    if ((n < S.small && !(n && S.logs)) || (S.mode == OUTSIDE && !S.tight)) return from_before(n);
    std::lock_guard<std::mutex> hold(S.mutex);
    void* p = nullptr;
    const bool mine = S.mode != OUTSIDE && owner;
    if (S.mode != OUTSIDE && !owner && n >= S.small) S.counts[FOREIGN]++;
    if (mine && S.mode == REPLAY && n >= S.small) p = planned(n);
    if (!p && n >= S.direct) p = map_alone(n);
    DataPtr data = p ? DataPtr(p, p, &release, c10::Device(c10::DeviceType::CPU)) : from_before(n);
    if (p) c10::profiledCPUMemoryReporter().New(p, n);
    if (S.logs && mine && S.mode == REHEARSAL) {
      S.number[data.get()] = S.logged++;
      S.log.push_back(n);
    }
    return data;
  }
  // raw_deleter() must name the deleter that allocate() attaches: oneDNN frees what it got by raw_allocate with it.
  DataPtr from_before(size_t n) {
    void* p = S.before->allocate(n).release_context();
    return DataPtr(p, p, &release, c10::Device(c10::DeviceType::CPU));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }
};

PlannedArena allocator;

void release_in_region(char* p) {
  auto block = S.live.find(p - S.region);
  TORCH_INTERNAL_ASSERT(block != S.live.end(), "arena: a block is freed that is not there");
  if (S.guard) {
    const size_t asked = S.asked[p];
    check(p + asked, block->second - asked, FENCE);
    memset(p, FREED, block->second);
    S.asked.erase(p);
  }
  S.used -= block->second;
  S.live.erase(block);
}

void release(void* p) {
  if (!p) return;
  {
    std::lock_guard<std::mutex> hold(S.mutex);
    if (S.logs) {
      auto found = S.number.find(p);
      if (found != S.number.end()) {
        S.log.push_back(-(found->second + 1));
        S.number.erase(found);
      }
    }
    if (in_region(p)) {
      c10::profiledCPUMemoryReporter().Delete(p);
      release_in_region((char*)p);
      return;
    }
    auto alone = S.mapped.find(p);
    if (alone != S.mapped.end()) {
      c10::profiledCPUMemoryReporter().Delete(p);
      munmap(p, alone->second);
      S.mapped_bytes -= alone->second;
      S.mapped.erase(alone);
      return;
    }
  }
  S.before->raw_deleter()(p);
}

// Give the pages of the region's free gaps back to the system.
void trim() {
  if (S.guard || !S.region) return;
  auto drop = [](size_t from, size_t to) {
    from = up(from, PAGE);
    to = to / PAGE * PAGE;
    if (to > from) madvise(S.region + from, to - from, MADV_DONTNEED);
  };
  size_t at = 0;
  for (auto& block : S.live) {
    drop(at, block.first);
    at = block.first + block.second;
  }
  drop(at, S.size);
}

// A forked process would hold a copy of every page that is written afterwards: of free ones there is none to copy.
void before_fork() { S.mutex.lock(); trim(); }
void in_parent() { S.mutex.unlock(); }
void in_child() { S.mode = OUTSIDE; S.logs = false; S.mutex.unlock(); }

// Reserve addresses, no memory; half as many where the system has a limit.
bool reserve() {
  size_t wanted = up((size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE), HUGE);
  for (; wanted >= HUGE; wanted = up(wanted / 2, HUGE)) {
    void* p = mmap(nullptr, wanted + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
      S.region = (char*)up((size_t)p, HUGE);
      S.reserved = wanted;
      return true;
    }
    if (wanted == HUGE) break;
  }
  return false;
}

bool grow(size_t bytes) {
  bytes = up(bytes, PAGE);
  if (bytes <= S.size) return true;
  if (bytes > S.reserved || mprotect(S.region, bytes, PROT_READ | PROT_WRITE)) return false;
  if (S.huge) madvise(S.region, bytes, MADV_HUGEPAGE);
  if (S.guard) memset(S.region + S.size, FREED, bytes - S.size);
  S.size = bytes;
  return true;
}

}  // namespace

extern "C" {

// 0, or why not: 2 the allocator before has no deleter, 3 another one is preferred, 4 there are no addresses.
int arena_install(int guard, int huge) {
  if (!S.before) {
    c10::Allocator* before = c10::GetCPUAllocator();
    if (!before->raw_deleter()) return 2;
    if (!reserve()) return 4;
    S.before = before;
    c10::SetCPUAllocator(&allocator, 1);
    if (c10::GetCPUAllocator() != &allocator) return 3;
    pthread_atfork(before_fork, in_parent, in_child);
  }
  std::lock_guard<std::mutex> hold(S.mutex);
  if (S.live.empty()) {  // another mode may begin
    if (S.size) madvise(S.region, S.size, MADV_DONTNEED);
    S.guard = guard;
    S.huge = huge;
    if (S.guard && S.size) memset(S.region, FREED, S.size);
  }
  S.tight = true;
  return 0;
}

void arena_rest() {
  std::lock_guard<std::mutex> hold(S.mutex);
  trim();
}

void arena_close() {
  std::lock_guard<std::mutex> hold(S.mutex);
  S.tight = false;
  trim();
}

// The plan's number, or -1 if the system gives no room.
int64_t arena_plan(const int64_t* sizes, const int64_t* places, int64_t count, int64_t bytes) {
  std::lock_guard<std::mutex> hold(S.mutex);
  if (!grow(bytes)) return -1;
  S.plans.push_back({{sizes, sizes + count}, {places, places + count}});
  return S.plans.size() - 1;
}

void arena_enter(int mode, int64_t plan) {
  std::lock_guard<std::mutex> hold(S.mutex);
  if (mode == REHEARSAL) trim();
  S.plan = mode == REPLAY ? &S.plans[plan] : nullptr;
  S.cursor = 0;
  S.mode = (Mode)mode;
  owner = true;
}

// Leave a step, and hand out the counts and bytes since the last time: COUNTS, what the plan expected and did not come,
// the most bytes at any moment, bytes now in the region, mapped one by one, and the region's size.
void arena_leave(int64_t* out) {
  std::lock_guard<std::mutex> hold(S.mutex);
  S.mode = OUTSIDE;
  owner = false;
  for (int i = 0; i < COUNTS; i++) {
    out[i] = S.counts[i];
    S.counts[i] = 0;
  }
  out[COUNTS] = S.plan ? S.plan->sizes.size() - S.cursor : 0;
  out[COUNTS + 1] = S.most;
  out[COUNTS + 2] = S.used;
  out[COUNTS + 3] = S.mapped_bytes;
  out[COUNTS + 4] = S.size;
  S.most = S.used + S.mapped_bytes;
  S.plan = nullptr;
}

void arena_log(int on) {
  std::lock_guard<std::mutex> hold(S.mutex);
  S.log.clear();
  S.number.clear();
  S.logged = 0;
  S.logs = on;
}

int64_t arena_read_log(int64_t* out, int64_t most) {
  std::lock_guard<std::mutex> hold(S.mutex);
  if (out) std::copy_n(S.log.begin(), std::min<int64_t>(most, S.log.size()), out);
  return S.log.size();
}

}  // extern "C"
