in vec3 in_position;
in vec3 in_normal;
in vec3 in_rest;     // the same vertex on the mean face: where procedural marks live
in vec2 in_uv;
in vec2 in_weight;   // x: share of the head's turn, y: occlusion (1 open)
uniform float offset;  // along the normal
out vec3 v_position;
out vec3 v_normal;
out vec3 v_rest;
out vec2 v_uv;
out float v_open;
void main() {
    v_position = pose(in_position + in_normal * offset, in_weight.x);
    v_normal = turn(in_normal, in_weight.x);
    v_rest = in_rest;
    v_uv = in_uv;
    v_open = in_weight.y;
    gl_Position = view_projection * vec4(v_position, 1.0);
}
