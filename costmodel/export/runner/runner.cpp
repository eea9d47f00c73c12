// Trains and tests with an exported program, without Python.
//
//   runner train PROGRAM DATA [--epochs N] [--lr R] [--seed N] [--state FILE] [--save FILE] [--constant-lr] [--in-order]
//   runner test PROGRAM DATA [--state FILE]
//
// Both take --portable, for the runtime's own convolutions in the place of those of convolution.cpp.
// DATA is what `planner prepare-data` writes (see Data below). A state file holds what training changes, behind the size
// and checksum of the program that it belongs to. Numbers in files are little-endian.
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "convolution.h"

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::MallocMemoryAllocator;
using executorch::extension::MmapDataLoader;
using namespace executorch::runtime;

[[noreturn]] static void fail(const std::string& what) {
  fprintf(stderr, "error: %s\n", what.c_str());
  exit(2);
}

static void check(Error error, const std::string& what) {
  if (error != Error::Ok) fail(what + " (runtime error " + std::to_string(int(error)) + ")");
}

// What the runtime says of errors; the rest, such as files about the processor that it looked for, helps nobody here.
static void say(et_timestamp_t, et_pal_log_level_t level, const char* file, const char*, size_t line,
                const char* message, size_t length) {
  if (level == kError || level == kFatal) fprintf(stderr, "%s:%zu: %.*s\n", file, line, int(length), message);
}

// A file in memory, mapped: its pages come from the file and can be dropped by the system.
class Mapped {
 public:
  explicit Mapped(const std::string& path) {
    int file = open(path.c_str(), O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) fail("cannot open " + path);
    size = size_t(status.st_size);
    void* start = size ? mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
    close(file);
    if (!size || start == MAP_FAILED) fail("cannot map " + path);
    data = static_cast<const uint8_t*>(start);
  }
  ~Mapped() { munmap(const_cast<uint8_t*>(data), size); }
  Mapped(const Mapped&) = delete;
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// CRC-32 (ISO 3309, as in zlib) and size of a file, to tell programs apart.
struct Identity {
  uint32_t crc;
  uint64_t size;
};

static Identity identify(const uint8_t* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return {~crc, uint64_t(size)};
}

// Images and labels: a header, labels (int32), then images; little-endian.
class Data {
 public:
  struct Header {
    char magic[8];  // FTPDATA1
    uint32_t count, channels, height, width, classes;
    uint32_t is_float;  // 0: bytes, of which (byte / 255 - mean) / deviation is used; 1: float32 as they are
    float mean[3], deviation[3];
  };
  explicit Data(const std::string& path) : file_(path) {
    if (file_.size < sizeof(Header)) fail(path + " is too short for a data file; make it with planner prepare-data");
    memcpy(&header, file_.data, sizeof(Header));
    if (memcmp(header.magic, "FTPDATA1", 8) != 0) fail(path + " is no data file; make it with planner prepare-data");
    pixels_ = size_t(header.channels) * header.height * header.width;
    size_t item = pixels_ * (header.is_float ? 4 : 1) + 4;
    if (header.channels != 3 || file_.size != sizeof(Header) + item * header.count)
      fail(path + " has another length than its header says; make it anew");
  }
  int64_t label(size_t i) const {
    int32_t value;
    memcpy(&value, file_.data + sizeof(Header) + 4 * i, 4);
    return value;
  }
  void image(size_t i, float* out) const {
    const uint8_t* images = file_.data + sizeof(Header) + size_t(4) * header.count;
    if (header.is_float) {
      memcpy(out, images + i * pixels_ * 4, pixels_ * 4);
      return;
    }
    size_t plane = pixels_ / 3;
    for (size_t j = 0; j < pixels_; ++j)
      out[j] = (images[i * pixels_ + j] / 255.0f - header.mean[j / plane]) / header.deviation[j / plane];
  }
  size_t pixels() const { return pixels_; }
  Header header;

 private:
  Mapped file_;
  size_t pixels_ = 0;
};

// A loaded program. Its methods share one arena for what comes and goes and one for what stays, the state. Only what is
// asked for is loaded: a delegate packs a copy of the weights for each method.
class Network {
 public:
  Network(const std::string& path, const std::string& command) {
    Mapped file(path);
    Identity own = identify(file.data, file.size);
    memcpy(head_, "FTPSTATE", 8);
    memcpy(head_ + 8, &own.crc, 4);
    memcpy(head_ + 12, &own.size, 8);
    auto loader = MmapDataLoader::from(path.c_str(), MmapDataLoader::MlockConfig::NoMlock);
    if (!loader.ok()) fail("cannot read " + path);
    loader_ = std::make_unique<MmapDataLoader>(std::move(loader.get()));
    auto program = Program::load(loader_.get());
    if (!program.ok()) fail(path + " is no program of this runtime");
    program_ = std::make_unique<Program>(std::move(program.get()));
    const char* wanted = command == "train" ? "step" : "predict";
    const char* names[] = {wanted, "state"};
    std::vector<size_t> sizes;
    for (const char* name : names) {
      auto meta = program_->method_meta(name);
      if (!meta.ok()) fail(path + " has no method " + name);
      for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
        if (sizes.size() <= i) sizes.resize(i + 1);
        sizes[i] = std::max(sizes[i], size_t(meta->memory_planned_buffer_size(i).get()));
      }
    }
    for (size_t size : sizes) {
      void* memory = aligned_alloc(64, (size + 63) / 64 * 64 + 64);
      if (!memory) fail("there is not enough memory: an arena of " + std::to_string(size) + " bytes is needed");
      arenas_.push_back({static_cast<uint8_t*>(memory), size});
      planned += size;
    }
    arena_ = std::make_unique<HierarchicalAllocator>(Span<Span<uint8_t>>(arenas_.data(), arenas_.size()));
    manager_ = std::make_unique<MemoryManager>(&pool_, arena_.get(), &temporary_);
    method_ = load(wanted);  // loading writes first values into the state, so all is loaded before anything runs
    state_ = load("state");
    auto x = program_->method_meta("step")->input_tensor_meta(0);
    for (size_t i = 0; i < 4; ++i) shape[i] = x->sizes()[i];
  }

  float step(std::vector<float>& x, std::vector<int64_t>& y, float rate, int64_t* right) {
    int32_t labels[] = {shape[0]};
    TensorImpl images(ScalarType::Float, 4, shape, x.data()), answers(ScalarType::Long, 1, labels, y.data()),
        one(ScalarType::Float, 0, nullptr, &rate);
    check(method_->set_input(EValue(Tensor(&images)), 0), "cannot hand over the images");
    check(method_->set_input(EValue(Tensor(&answers)), 1), "cannot hand over the labels");
    check(method_->set_input(EValue(Tensor(&one)), 2), "cannot hand over the learning rate");
    check(method_->execute(), "the step failed");
    *right += method_->get_output(1).toTensor().const_data_ptr<int64_t>()[0];
    return method_->get_output(0).toTensor().const_data_ptr<float>()[0];
  }

  const float* predict(std::vector<float>& x, size_t* classes) {
    int32_t one[] = {1, shape[1], shape[2], shape[3]};
    TensorImpl images(ScalarType::Float, 4, one, x.data());
    check(method_->set_input(EValue(Tensor(&images)), 0), "cannot hand over the images");
    check(method_->execute(), "the prediction failed");
    Tensor logits = method_->get_output(0).toTensor();
    *classes = size_t(logits.size(1));
    return logits.const_data_ptr<float>();
  }

  void save(const std::string& path) {
    check(state_->execute(), "cannot read the state");
    std::string partial = path + ".part";
    FILE* out = fopen(partial.c_str(), "wb");
    if (!out) fail("cannot write " + partial);
    bool good = fwrite(head_, 1, sizeof head_, out) == sizeof head_;
    for (const Tensor& tensor : state()) good &= fwrite(tensor.const_data_ptr(), 1, tensor.nbytes(), out) == tensor.nbytes();
    if (fclose(out) != 0 || !good || rename(partial.c_str(), path.c_str()) != 0) fail("cannot write " + path);
  }

  void restore(const std::string& path) {
    check(state_->execute(), "cannot reach the state");
    Mapped saved(path);
    size_t wanted = sizeof head_;
    for (const Tensor& tensor : state()) wanted += tensor.nbytes();
    if (saved.size < sizeof head_ || memcmp(saved.data, head_, 8) != 0) fail(path + " is no state that a runner saved");
    if (memcmp(saved.data, head_, sizeof head_) != 0) fail(path + " belongs to another program");
    if (saved.size != wanted) fail(path + " is incomplete");
    const uint8_t* from = saved.data + sizeof head_;
    for (Tensor& tensor : state()) {
      memcpy(tensor.mutable_data_ptr(), from, tensor.nbytes());
      from += tensor.nbytes();
    }
  }

  int32_t shape[4];
  size_t planned = 0;

 private:
  std::vector<Tensor> state() {  // the first result is how many steps were made; the others are the state itself
    std::vector<Tensor> found;
    for (size_t i = 1; i < state_->outputs_size(); ++i) found.push_back(state_->get_output(i).toTensor());
    return found;
  }
  std::unique_ptr<Method> load(const char* name) {
    auto method = program_->load_method(name, manager_.get());
    if (!method.ok())
      fail(std::string("cannot load the method ") + name + ": runtime error " + std::to_string(int(method.error())) +
           "; was the runner built with the delegate that the program uses?");
    return std::make_unique<Method>(std::move(method.get()));
  }

  uint8_t head_[20];  // of a state file
  std::unique_ptr<MmapDataLoader> loader_;
  std::unique_ptr<Program> program_;
  std::vector<Span<uint8_t>> arenas_;
  std::unique_ptr<HierarchicalAllocator> arena_;
  MallocMemoryAllocator pool_, temporary_;
  std::unique_ptr<MemoryManager> manager_;
  std::unique_ptr<Method> method_, state_;
};

struct Options {
  std::string command, program, data, state, save;
  int epochs = 1;
  double rate = 0.01;
  uint64_t seed = 0;
  bool constant = false, in_order = false, portable = false;
};

static Options parse(int count, char** words) {
  Options options;
  std::vector<std::string> plain;
  for (int i = 1; i < count; ++i) {
    std::string word = words[i];
    auto next = [&]() -> std::string {
      if (++i == count) fail(word + " needs a value");
      return words[i];
    };
    auto number = [&](double least) {
      std::string text = next();
      char* end = nullptr;
      double value = strtod(text.c_str(), &end);
      if (text.empty() || *end || !(value >= least) || value > 1e9) fail(word + " " + text + " is no number that can be used");
      return value;
    };
    if (word == "--epochs") options.epochs = int(number(1));
    else if (word == "--lr") options.rate = number(1e-12);
    else if (word == "--seed") options.seed = uint64_t(number(0));
    else if (word == "--state") options.state = next();
    else if (word == "--save") options.save = next();
    else if (word == "--constant-lr") options.constant = true;
    else if (word == "--in-order") options.in_order = true;
    else if (word == "--portable") options.portable = true;
    else if (word.rfind("--", 0) == 0) fail("unknown option " + word + "; the options stand at the top of runner.cpp");
    else plain.push_back(word);
  }
  if (plain.size() != 3 || (plain[0] != "train" && plain[0] != "test"))
    fail("usage: runner train|test PROGRAM DATA [options]; they stand at the top of runner.cpp");
  options.command = plain[0];
  options.program = plain[1];
  options.data = plain[2];
  return options;
}

static long status_kb(const char* key) {
  FILE* file = fopen("/proc/self/status", "r");
  if (!file) return 0;
  char line[256];
  long found = 0;
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key))) found = atol(line + strlen(key) + 1);
  fclose(file);
  return found;
}

static void train(Network& network, const Data& data, const Options& options) {
  size_t batch = size_t(network.shape[0]), count = data.header.count, steps = count / batch;
  if (!steps) fail("there are fewer images than a batch of " + std::to_string(batch));
  std::vector<float> x(batch * data.pixels());
  std::vector<int64_t> y(batch);
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t(0));
  std::mt19937_64 random(options.seed);
  double total = double(steps) * options.epochs, done = 0;
  for (int epoch = 1; epoch <= options.epochs; ++epoch) {
    for (size_t i = count - 1; i > 0 && !options.in_order; --i) std::swap(order[i], order[random() % (i + 1)]);
    auto start = std::chrono::steady_clock::now();
    double loss = 0;
    int64_t right = 0;
    for (size_t s = 0; s < steps; ++s) {  // a batch that is not full is left out
      for (size_t i = 0; i < batch; ++i) {
        size_t which = order[s * batch + i];
        data.image(which, x.data() + i * data.pixels());
        y[i] = data.label(which);
      }
      double rate = options.constant ? options.rate : options.rate * 0.5 * (1 + std::cos(M_PI * done / total));
      double one = network.step(x, y, float(rate), &right);
      if (!std::isfinite(one)) fail("training diverged: the loss is no finite number; take a smaller --lr");
      loss += one;
      ++done;
    }
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    printf("epoch %d loss %.6f accuracy %.2f %% seconds per step %.4f\n", epoch, loss / steps,
           100.0 * right / (steps * batch), seconds / steps);
    fflush(stdout);
  }
}

static void test(Network& network, const Data& data) {
  size_t right = 0, classes = 0;
  std::vector<float> x(data.pixels());
  for (size_t i = 0; i < data.header.count; ++i) {
    data.image(i, x.data());
    const float* logits = network.predict(x, &classes);
    right += std::max_element(logits, logits + classes) - logits == data.label(i);
  }
  printf("accuracy %.2f %% of %u images\n", 100.0 * right / data.header.count, data.header.count);
}

int main(int count, char** words) {
  Options options = parse(count, words);
  register_pal(PalImpl::create(say, __FILE__));
  runtime_init();
  if (!options.portable) check(register_convolutions(), "cannot register the convolutions");
  Data data(options.data);
  Network network(options.program, options.command);
  if (int(data.header.height) != network.shape[2] || int(data.header.width) != network.shape[3])
    fail("the images have " + std::to_string(data.header.height) + " pixels, the program takes " +
         std::to_string(network.shape[2]) + "; prepare the data with --resolution " + std::to_string(network.shape[2]));
  if (!options.state.empty()) network.restore(options.state);
  if (options.command == "train") train(network, data, options);
  else test(network, data);
  if (!options.save.empty()) network.save(options.save);
  printf("memory: arenas %zu bytes, peak resident %ld kB (anonymous %ld kB now)\n", network.planned, status_kb("VmHWM:"),
         status_kb("RssAnon:"));
  return 0;
}
