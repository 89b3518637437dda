// The door for files: reads one whole, and the checksum that tells a damaged file from a plan.
#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "load.h"

namespace lcnn {
namespace {

/// tables[j][b]: the CRC-32 (polynomial 0xedb88320) of byte b followed by j zero bytes, so that 8 bytes go at a time.
using Tables = std::array<std::array<uint32_t, 256>, 8>;

Tables crc_tables() {
    Tables t{};
    for (uint32_t b = 0; b < 256; ++b) {
        t[0][b] = b;
        for (int bit = 0; bit < 8; ++bit) t[0][b] = t[0][b] >> 1 ^ (t[0][b] & 1 ? 0xedb88320u : 0);
    }
    for (size_t j = 1; j < 8; ++j)
        for (size_t b = 0; b < 256; ++b) t[j][b] = t[j - 1][b] >> 8 ^ t[0][t[j - 1][b] & 255];
    return t;
}

uint32_t crc32(const unsigned char* at, int64_t size, uint32_t crc) {
    static const Tables t = crc_tables();
    for (; size >= 8; at += 8, size -= 8) {
        uint32_t low;
        memcpy(&low, at, 4);
        low ^= crc;
        crc = t[7][low & 255] ^ t[6][low >> 8 & 255] ^ t[5][low >> 16 & 255] ^ t[4][low >> 24];
        for (size_t j = 0; j < 4; ++j) crc ^= t[3 - j][at[4 + j]];
    }
    for (; size > 0; ++at, --size) crc = crc >> 8 ^ t[0][(crc ^ *at) & 255];
    return crc;
}

}  // namespace

uint32_t checksum(const void* bytes, int64_t size) {
    const auto* at = static_cast<const unsigned char*>(bytes);
    constexpr int64_t before = CHECKSUM_WORD * 8, after = before + 8;
    return ~crc32(at + after, size - after, crc32(at, before, ~0u));
}

std::vector<int64_t> read_file(const char* path, int64_t& size) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer is no reason to wait
    std::unique_ptr<FILE, int (*)(FILE*)> file(descriptor < 0 ? nullptr : fdopen(descriptor, "rb"), fclose);
    struct stat info {};
    if (!file || fstat(descriptor, &info)) fail("cannot open '%.150s': %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) fail("'%.150s' is not a regular file", path);
    size = info.st_size;
    std::vector<int64_t> words(size_t(size + 7) / 8);
    if (fread(words.data(), 1, size_t(size), file.get()) != size_t(size)) fail("cannot read '%.150s'", path);
    return words;
}

}  // namespace lcnn
