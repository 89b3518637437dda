# Cross-compiles for 64-bit ARM with Debian's packages (apt-get install g++-aarch64-linux-gnu qemu-user):
#     cmake -S . -B build-neon -DCMAKE_TOOLCHAIN_FILE=lcnn_core/engine/native/aarch64.cmake && cmake --build build-neon
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
