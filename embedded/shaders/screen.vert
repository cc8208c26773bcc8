out vec2 v_at;   // [-1, 1], y up
void main() {
    v_at = vec2(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0);
    gl_Position = vec4(v_at, 0.99999, 1.0);
}
