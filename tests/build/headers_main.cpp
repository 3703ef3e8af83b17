// The test is that this program links: see CMakeLists.txt.
int main() { return 0; }
